// Vectors whose memory a thread keeps for its next call. The C library gives larger blocks back to the
// system when they are freed, and fresh pages can cost a small call more than all that it computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace atlas_kernels {

// The free blocks of one thread, each as large as a power of two, kMost bytes in all. They begin with a line of
// the cache, so that no vector that is read of them lies in two.
class Blocks {
 public:
  ~Blocks() {
    for (auto& blocks : free_) {
      for (void* block : blocks) ::operator delete(block, kLine);
    }
  }

  void* take(size_t bytes) {
    const int power = power_of(bytes);
    if (power < kPowers && !free_[power].empty()) {
      void* block = free_[power].back();
      free_[power].pop_back();
      kept_ -= size_t(1) << power;
      return block;
    }
    return ::operator new(power < kPowers ? size_t(1) << power : bytes, kLine);
  }

  void give(void* block, size_t bytes) noexcept {
    const int power = power_of(bytes);
    if (power >= kPowers || kept_ + (size_t(1) << power) > kMost) return ::operator delete(block, kLine);
    try {
      free_[power].push_back(block);
      kept_ += size_t(1) << power;
    } catch (const std::bad_alloc&) {
      ::operator delete(block, kLine);
    }
  }

 private:
  static constexpr std::align_val_t kLine{64};
  static constexpr int kPowers = 24;
  static constexpr size_t kMost = size_t(1) << kPowers;

  static int power_of(size_t bytes) {
    int power = 6;
    while (power < kPowers && (size_t(1) << power) < bytes) ++power;
    return power;
  }

  std::vector<void*> free_[kPowers];
  size_t kept_ = 0;
};

inline Blocks& blocks_of_this_thread() {
  static thread_local Blocks blocks;
  return blocks;
}

template <typename T>
struct ScratchAllocator {
  using value_type = T;
  ScratchAllocator() = default;
  template <typename U>
  ScratchAllocator(const ScratchAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(blocks_of_this_thread().take(n * sizeof(T))); }
  void deallocate(T* block, size_t n) noexcept { blocks_of_this_thread().give(block, n * sizeof(T)); }
  template <typename U>
  bool operator==(const ScratchAllocator<U>&) const { return true; }
  template <typename U>
  bool operator!=(const ScratchAllocator<U>&) const { return false; }
};

template <typename T>
using Scratch = std::vector<T, ScratchAllocator<T>>;

// The same for n numbers that are not set to anything.
template <typename T>
class Room {
 public:
  explicit Room(size_t n) : n_(n), memory_(ScratchAllocator<T>().allocate(n)) {}
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { ScratchAllocator<T>().deallocate(memory_, n_); }

  T* data() const { return memory_; }

 private:
  size_t n_;
  T* memory_;
};

}  // namespace atlas_kernels
