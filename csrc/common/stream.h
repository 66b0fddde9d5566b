// Writing large outputs once, past the cache: a line that is written whole need not be read first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define ATLAS_HAS_STREAM 1
#endif

namespace atlas_kernels {

constexpr size_t kCacheLine = 64;

// Copies `bytes` from `source` (zeros where it is null), of any alignment. Call stream_fence() before
// another thread may read what was written.
inline void stream_copy(void* out, const void* source, size_t bytes) {
  auto* to = static_cast<unsigned char*>(out);
  auto* from = static_cast<const unsigned char*>(source);
  const auto plain = [&](size_t n) {
    if (from) {
      std::memcpy(to, from, n);
      from += n;
    } else {
      std::memset(to, 0, n);
    }
    to += n;
    bytes -= n;
  };
#if defined(ATLAS_HAS_STREAM)
  const size_t past = reinterpret_cast<uintptr_t>(to) % kCacheLine;
  plain(std::min(bytes, past ? kCacheLine - past : 0));
  const __m128i zero = _mm_setzero_si128();
  for (; bytes >= kCacheLine; bytes -= kCacheLine, to += kCacheLine) {
    auto* line = reinterpret_cast<__m128i*>(to);
    if (from) {
      auto* data = reinterpret_cast<const __m128i*>(from);
      const __m128i a = _mm_loadu_si128(data), b = _mm_loadu_si128(data + 1);
      const __m128i c = _mm_loadu_si128(data + 2), d = _mm_loadu_si128(data + 3);
      _mm_stream_si128(line, a);
      _mm_stream_si128(line + 1, b);
      _mm_stream_si128(line + 2, c);
      _mm_stream_si128(line + 3, d);
      from += kCacheLine;
    } else {
      for (int i = 0; i < 4; ++i) _mm_stream_si128(line + i, zero);
    }
  }
#endif
  plain(bytes);
}

inline void stream_fence() {
#if defined(ATLAS_HAS_STREAM)
  _mm_sfence();
#endif
}

}  // namespace atlas_kernels
