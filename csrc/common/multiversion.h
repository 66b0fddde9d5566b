// ATLAS_MULTIVERSION compiles one function for several x86-64 levels; the loader picks the widest
// one that the machine has, so one binary serves all of them. Together with -ffp-contract=off
// (CMakeLists.txt) every level yields the same bits.
//
// It needs GCC and glibc's indirect functions, which sanitizers do not follow; elsewhere it is
// nothing. It does not work on templates: put it on a plain function that calls one marked
// ATLAS_INLINE, so that the body is compiled again inside each version.
//
// ATLAS_LEVELS(function, body) does the same where the body is written in vectors of kBytes.
//
// ATLAS_MULTIVERSION_V3 stops at vectors of 32 bytes: short rows that start anywhere are slower in
// vectors of 64, because nearly each of those crosses into another cache line.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define ATLAS_MULTIVERSION \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define ATLAS_MULTIVERSION_V3 __attribute__((target_clones("default", "arch=x86-64-v3")))
#define ATLAS_LEVELS(function, ...)                                                     \
  ATLAS_IN_VECTORS(__attribute__((target("default"))) function, 16, __VA_ARGS__)        \
  ATLAS_IN_VECTORS(__attribute__((target("arch=x86-64-v3"))) function, 32, __VA_ARGS__) \
  ATLAS_IN_VECTORS(__attribute__((target("arch=x86-64-v4"))) function, 64, __VA_ARGS__)
#define ATLAS_KNOWS_AVX512  // in vectors of 64 bytes
#else
#define ATLAS_MULTIVERSION
#define ATLAS_MULTIVERSION_V3
#define ATLAS_LEVELS(function, ...) ATLAS_IN_VECTORS(function, 16, __VA_ARGS__)
#endif
#define ATLAS_IN_VECTORS(function, bytes, ...) \
  [[maybe_unused]] function {                  \
    constexpr int64_t kBytes = bytes;          \
    __VA_ARGS__;                               \
  }
#if defined(ATLAS_VECTOR)  // tests name one
#undef ATLAS_LEVELS
#define ATLAS_LEVELS(function, ...) ATLAS_IN_VECTORS(function, ATLAS_VECTOR, __VA_ARGS__)
#endif

#if defined(__GNUC__)
#define ATLAS_INLINED __attribute__((always_inline))  // of a lambda
#else
#define ATLAS_INLINED
#endif
#define ATLAS_INLINE ATLAS_INLINED inline

// "No other pointer reaches this memory": spares the vectoriser a check in front of every short row.
#if defined(_MSC_VER)
#define ATLAS_RESTRICT __restrict
#else
#define ATLAS_RESTRICT __restrict__
#endif

// Before a loop: its iterations touch no memory of one another, so it may become vectors unchecked.
#if defined(__clang__)
#define ATLAS_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ATLAS_INDEPENDENT _Pragma("GCC ivdep")
#else
#define ATLAS_INDEPENDENT
#endif
