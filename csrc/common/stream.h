// Writing large outputs once, past the cache: a line that is written whole need not be read first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#define ATLAS_HAS_STREAM 1
#endif

namespace atlas_kernels {

// Writes consecutive pieces of any length to memory of any alignment. What a piece leaves of a cache
// line waits for the next one, so that all lines but the first and the last are written whole.
class Stream {
 public:
  explicit Stream(void* out) : to_(static_cast<unsigned char*>(out)) {
    const size_t past = reinterpret_cast<uintptr_t>(out) % kLine;
    head_ = past ? kLine - past : 0;
  }
  ~Stream() { finish(); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Appends `bytes` from `source`, zeros where it is null.
  void put(const void* source, size_t bytes) {
    auto* from = static_cast<const unsigned char*>(source);
    const auto take = [&](unsigned char* out, size_t n) {
      if (from) {
        std::memcpy(out, from, n);
        from += n;
      } else {
        std::memset(out, 0, n);
      }
      bytes -= n;
    };
    if (head_) {
      const size_t n = std::min(head_, bytes);
      take(to_, n);
      to_ += n;
      head_ -= n;
    }
    if (waiting_) {
      const size_t n = std::min(kLine - waiting_, bytes);
      take(line_ + waiting_, n);
      waiting_ += n;
      if (waiting_ < kLine) return;
      write_lines(line_, 1);
      waiting_ = 0;
    }
    const size_t lines = bytes / kLine;
    from ? write_lines(from, lines) : write_zeros(lines);
    if (from) from += lines * kLine;
    bytes -= lines * kLine;
    waiting_ = bytes;
    take(line_, bytes);
  }

  // Writes what waits, and lets other threads see all of it.
  void finish() {
    std::memcpy(to_, line_, waiting_);
    to_ += waiting_;
    waiting_ = 0;
#if defined(ATLAS_HAS_STREAM)
    _mm_sfence();
#endif
  }

 private:
  static constexpr size_t kLine = 64;

#if defined(ATLAS_HAS_STREAM)
  void write_lines(const unsigned char* from, size_t lines) {
    has_avx() ? stream_wide(from, lines) : stream(from, lines);
    to_ += lines * kLine;
  }

  void write_zeros(size_t lines) {
    has_avx() ? stream_zeros_wide(lines) : stream_zeros(lines);
    to_ += lines * kLine;
  }

  static bool has_avx() {
    static const bool has = __builtin_cpu_supports("avx");
    return has;
  }

  void stream(const unsigned char* from, size_t lines) {
    auto* in = reinterpret_cast<const __m128i*>(from);
    auto* out = reinterpret_cast<__m128i*>(to_);
    for (; lines; --lines, in += 4, out += 4) {
      for (int i = 0; i < 4; ++i) _mm_stream_si128(out + i, _mm_loadu_si128(in + i));
    }
  }

  void stream_zeros(size_t lines) {
    auto* out = reinterpret_cast<__m128i*>(to_);
    for (; lines; --lines, out += 4) {
      for (int i = 0; i < 4; ++i) _mm_stream_si128(out + i, _mm_setzero_si128());
    }
  }

  __attribute__((target("avx"))) void stream_wide(const unsigned char* from, size_t lines) {
    auto* in = reinterpret_cast<const __m256i*>(from);
    auto* out = reinterpret_cast<__m256i*>(to_);
    for (; lines; --lines, in += 2, out += 2) {
      const __m256i a = _mm256_loadu_si256(in), b = _mm256_loadu_si256(in + 1);
      _mm256_stream_si256(out, a);
      _mm256_stream_si256(out + 1, b);
    }
  }

  __attribute__((target("avx"))) void stream_zeros_wide(size_t lines) {
    auto* out = reinterpret_cast<__m256i*>(to_);
    for (; lines; --lines, out += 2) {
      _mm256_stream_si256(out, _mm256_setzero_si256());
      _mm256_stream_si256(out + 1, _mm256_setzero_si256());
    }
  }
#else
  void write_lines(const unsigned char* from, size_t lines) {
    std::memcpy(to_, from, lines * kLine);
    to_ += lines * kLine;
  }

  void write_zeros(size_t lines) {
    std::memset(to_, 0, lines * kLine);
    to_ += lines * kLine;
  }
#endif

  unsigned char* to_;
  size_t head_, waiting_ = 0;  // bytes up to the first whole line; bytes in `line_`
  alignas(kLine) unsigned char line_[kLine];
};

}  // namespace atlas_kernels
