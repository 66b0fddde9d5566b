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

// For a loop that writes whole lines past the cache itself: other threads see them when this ends.
class PastCache {
 public:
  explicit PastCache(bool past) : past_(past) {}
  ~PastCache() {
#if defined(ATLAS_HAS_STREAM)
    if (past_) _mm_sfence();
#else
    static_cast<void>(past_);
#endif
  }
  PastCache(const PastCache&) = delete;
  PastCache& operator=(const PastCache&) = delete;

  // Whether a result of so many bytes, more than the second caches hold, had better go there: a quarter less time on
  // an Intel Xeon, a tenth more on AMD's EPYCs.
  static bool pays(int64_t bytes) {
#if defined(ATLAS_HAS_STREAM)
    static const bool intel = __builtin_cpu_is("intel");
    return intel && bytes >= int64_t(1) << 22;
#else
    return static_cast<void>(bytes), false;
#endif
  }

 private:
  bool past_;
};

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

  // Where in a cache line the next byte goes: a source that lies alike is read line by line.
  size_t phase() const { return (reinterpret_cast<uintptr_t>(to_) + waiting_) % kLine; }

  // Appends `bytes` from `source`.
  void put(const void* source, size_t bytes) {
    // Only a Drain writes to what it reads.
    append<Copy>(const_cast<unsigned char*>(static_cast<const unsigned char*>(source)), bytes);
  }

  // The same, and leaves zeros in `source`.
  void drain(void* source, size_t bytes) { append<Drain>(static_cast<unsigned char*>(source), bytes); }

  // Appends zeros.
  void put_zeros(size_t bytes) { append<Zeros>(nullptr, bytes); }

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

  // What a piece is made of: how some bytes of it are had, and whole lines.
  struct Copy {
    static constexpr bool reads = true, clears = false;
  };
  struct Drain {
    static constexpr bool reads = true, clears = true;
  };
  struct Zeros {
    static constexpr bool reads = false, clears = false;
  };

  template <typename Piece>
  static void take(unsigned char* out, unsigned char* from, size_t n) {
    if constexpr (Piece::reads) {
      std::memcpy(out, from, n);
    } else {
      std::memset(out, 0, n);
    }
    if constexpr (Piece::clears) std::memset(from, 0, n);
  }

  template <typename Piece>
  void append(unsigned char* from, size_t bytes) {
    const auto advance = [&](size_t n) {
      if constexpr (Piece::reads) from += n;
      bytes -= n;
    };
    if (head_) {
      const size_t n = std::min(head_, bytes);
      take<Piece>(to_, from, n);
      to_ += n;
      head_ -= n;
      advance(n);
    }
    if (waiting_) {
      const size_t n = std::min(kLine - waiting_, bytes);
      take<Piece>(line_ + waiting_, from, n);
      waiting_ += n;
      advance(n);
      if (waiting_ < kLine) return;
      write_lines<Copy>(line_, 1);
      waiting_ = 0;
    }
    const size_t lines = bytes / kLine;
    write_lines<Piece>(from, lines);
    advance(lines * kLine);
    waiting_ = bytes;
    take<Piece>(line_, from, bytes);
  }

#if defined(ATLAS_HAS_STREAM)
  template <typename Piece>
  void write_lines(unsigned char* from, size_t lines) {
    has_avx() ? stream_wide<Piece>(from, lines) : stream<Piece>(from, lines);
    to_ += lines * kLine;
  }

  static bool has_avx() {
    static const bool has = __builtin_cpu_supports("avx");
    return has;
  }

  template <typename Piece>
  void stream(unsigned char* from, size_t lines) {
    auto* in = reinterpret_cast<__m128i*>(from);
    auto* out = reinterpret_cast<__m128i*>(to_);
    for (size_t i = 0; i < 4 * lines; ++i) {
      _mm_stream_si128(out + i, Piece::reads ? _mm_loadu_si128(in + i) : _mm_setzero_si128());
      if constexpr (Piece::clears) _mm_storeu_si128(in + i, _mm_setzero_si128());
    }
  }

  template <typename Piece>
  __attribute__((target("avx"))) void stream_wide(unsigned char* from, size_t lines) {
    auto* in = reinterpret_cast<__m256i*>(from);
    auto* out = reinterpret_cast<__m256i*>(to_);
    const __m256i zero = _mm256_setzero_si256();
    for (; lines; --lines, in += 2, out += 2) {
      const __m256i a = Piece::reads ? _mm256_loadu_si256(in) : zero;
      const __m256i b = Piece::reads ? _mm256_loadu_si256(in + 1) : zero;
      _mm256_stream_si256(out, a);
      _mm256_stream_si256(out + 1, b);
      if constexpr (Piece::clears) {
        _mm256_storeu_si256(in, zero);
        _mm256_storeu_si256(in + 1, zero);
      }
    }
  }
#else
  template <typename Piece>
  void write_lines(unsigned char* from, size_t lines) {
    take<Piece>(to_, from, lines * kLine);
    to_ += lines * kLine;
  }
#endif

  unsigned char* to_;
  size_t head_, waiting_ = 0;  // bytes up to the first whole line; bytes in `line_`
  alignas(kLine) unsigned char line_[kLine];
};

}  // namespace atlas_kernels
