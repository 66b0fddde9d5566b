#include "common/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace atlas_kernels {
namespace {

// One call of parallel_for: threads draw item numbers until none is left.
class Job {
 public:
  Job(int64_t items, const std::function<void(int64_t)>& body) : items_(items), body_(body) {}

  void work() {
    for (int64_t i = next_++; i < items_; i = next_++) {
      try {
        body_(i);
      } catch (...) {
        next_ = items_;  // nobody starts another item
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const int64_t items_;
  const std::function<void(int64_t)>& body_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::exception_ptr error_;
};

// To sleep and be woken takes some 50 microseconds where a processor idles deeply, and kernels call one
// after another: so a thread looks for a little longer first, and lets others have its processor.
template <typename Condition>
void linger(const Condition& done) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(400);
  while (!done() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
}

class Pool {
 public:
  void run(Job& job, int helpers) {
    if (busy_.exchange(true)) return job.work();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      hire(helpers);
      job_ = &job;
      seats_ = helpers;
    }
    wake_.notify_all();
    job.work();
    {
      // Close the job before waiting: a helper that wakes late must not be waited for.
      std::lock_guard<std::mutex> lock(mutex_);
      seats_ = 0;
    }
    linger([this] { return seated_ == 0; });
    {
      std::unique_lock<std::mutex> lock(mutex_);
      left_.wait(lock, [this] { return seated_ == 0; });
      job_ = nullptr;
    }
    busy_ = false;
  }

 private:
  void hire(int helpers) {
    try {
      for (; hired_ < helpers; ++hired_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // The system gives no more threads: those that there are do the work.
    }
  }

  void serve() {
    for (;;) {
      linger([this] { return seats_ > 0; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return seats_ > 0; });
      --seats_;
      ++seated_;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--seated_ == 0) left_.notify_one();
    }
  }

  std::atomic<bool> busy_{false};
  std::mutex mutex_;
  std::condition_variable wake_, left_;
  Job* job_ = nullptr;
  int hired_ = 0;               // threads that exist
  std::atomic<int> seats_{0};   // helpers still wanted by the job; changed under the mutex
  std::atomic<int> seated_{0};  // helpers working on it; likewise
};

// Never destroyed: its threads sleep until the process ends. A forked child has none of them and
// perhaps a mutex that is locked for ever, so it starts with a pool of its own.
Pool*& pool() {
  static Pool* current = [] {
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, [] { pool() = new Pool; });
#endif
    return new Pool;
  }();
  return current;
}

}  // namespace

void parallel_for(int64_t items, int threads, const std::function<void(int64_t)>& body) {
  Job job(items, body);
  const int64_t helpers = std::min<int64_t>(threads, items) - 1;
  if (helpers > 0) {
    pool()->run(job, static_cast<int>(helpers));
  } else {
    job.work();
  }
  job.rethrow();
}

}  // namespace atlas_kernels
