// parallel_for over the OpenMP threads that the process has, as torch's, or else over a small pool of
// std::thread that lives as long as the process.
//
// Beside torch a pool would be in the way: OpenMP's threads spin for a while after each of torch's ops, on
// the cores that ours want. A second OpenMP library is a known source of deadlocks, so none is linked:
// the one that is there is looked for when the program runs (parallel.cpp). Threads take items in any order,
// so a kernel gives the same bits for any number of threads exactly when each item writes memory that no
// other item touches. All kernels here are written that way.
#pragma once

#include <cstdint>
#include <functional>

namespace atlas_kernels {

// Calls body(i) once for each i in [0, items) on at most `threads` threads, the caller included, and
// returns when all are done. The first exception thrown by a body is thrown again here. A call from
// inside a body, or while another thread is using the pool, runs on its own thread alone.
void parallel_for(int64_t items, int threads, const std::function<void(int64_t)>& body);

// The same for loops that pass over the same items in turn: a thread begins with a share of them that lie side
// by side, the one it had in the last call, and helps the others when that is done. With `back` a share is gone
// through from its end, where the pass before left off and the second cache still holds what was read.
void parallel_shares(int64_t items, int threads, bool back, const std::function<void(int64_t)>& body);

}  // namespace atlas_kernels
