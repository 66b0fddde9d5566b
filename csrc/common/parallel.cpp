#include "common/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#include <strings.h>
#endif

namespace atlas_kernels {
namespace {

// One call: threads draw item numbers, each from a share of its own while it lasts, until none is left.
class Job {
 public:
  Job(int64_t items, int shares, bool back, const std::function<void(int64_t)>& body)
      : back_(back), body_(body), shares_(static_cast<size_t>(shares)) {
    for (int s = 0; s < shares; ++s) {
      shares_[s].begin = items * s / shares;
      shares_[s].size = items * (s + 1) / shares - shares_[s].begin;
    }
  }

  void work() {
    const size_t own = claim();
    for (size_t k = 0; k < shares_.size(); ++k) draw(shares_[(own + k) % shares_.size()]);
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct alignas(64) Share {
    int64_t begin, size;
    std::atomic<int64_t> next{0};
    std::atomic<bool> taken{false};
  };

  // The share that this thread had in the last job, if nobody has it.
  size_t claim() {
    static thread_local size_t had = 0;
    for (size_t k = 0; k < shares_.size(); ++k) {
      const size_t share = (had + k) % shares_.size();
      if (!shares_[share].taken.exchange(true)) return had = share;
    }
    return 0;
  }

  void draw(Share& share) {
    for (int64_t i = share.next++; i < share.size; i = share.next++) {
      try {
        body_(share.begin + (back_ ? share.size - 1 - i : i));
      } catch (...) {
        for (Share& other : shares_) other.next = other.size;  // nobody starts another item
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
  }

  const bool back_;
  const std::function<void(int64_t)>& body_;
  std::vector<Share> shares_;
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

// How the OpenMP libraries (GNU's, LLVM's, Intel's) run work(argument) on each of a team of threads.
using OpenMP = void (*)(void (*work)(void*), void* argument, unsigned threads, unsigned flags);

// Never destroyed: the pool's threads sleep until the process ends. A forked child has no thread but its
// own, and perhaps a mutex that is locked for ever: it starts with a new pool, and lets OpenMP alone.
struct Teams {
  Pool* pool = new Pool;
  bool forked = false;

  // The process's OpenMP; null without one, or where ours are quicker: those that wait without spinning
  // sleep at once. Looked for until it is there, as torch may be loaded late.
  OpenMP openmp() const {
#if defined(__linux__)
    static const bool passive = [] {
      const char* policy = std::getenv("OMP_WAIT_POLICY");
      return policy && !strcasecmp(policy, "passive");
    }();
    static std::atomic<void*> found{nullptr};
    if (passive || forked) return nullptr;
    if (!found) found = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    return reinterpret_cast<OpenMP>(found.load());
#else
    return nullptr;
#endif
  }
};

Teams& teams() {
  static Teams current;
#if !defined(_WIN32)
  static const int watched = pthread_atfork(nullptr, nullptr, [] { teams() = {new Pool, true}; });
  static_cast<void>(watched);
#endif
  return current;
}

}  // namespace

namespace {

void run(Job& job, int team, int threads) {
  if (team <= 1) {
    job.work();
  } else if (const OpenMP openmp = teams().openmp()) {
    // As large as torch's own regions: the library ends and starts threads where the number changes.
    openmp([](void* of) { static_cast<Job*>(of)->work(); }, &job, static_cast<unsigned>(threads), 0);
  } else {
    teams().pool->run(job, team - 1);
  }
  job.rethrow();
}

int team_of(int64_t items, int threads) { return static_cast<int>(std::min<int64_t>(threads, items)); }

}  // namespace

void parallel_for(int64_t items, int threads, const std::function<void(int64_t)>& body) {
  Job job(items, 1, false, body);
  run(job, team_of(items, threads), threads);
}

void parallel_shares(int64_t items, int threads, bool back, const std::function<void(int64_t)>& body) {
  const int team = team_of(items, threads);
  Job job(items, std::max(team, 1), back, body);
  run(job, team, threads);
}

}  // namespace atlas_kernels
