// Contract checks shared by every kernel: one sentence, thrown as std::invalid_argument (which the
// bindings turn into ValueError). They guard memory; splat looks at its values too, the layers at
// none.
#pragma once

#include <stdexcept>
#include <string>

namespace atlas_kernels {

// A sentence in quotes becomes a string only where it is thrown.
template <typename Sentence>
inline void require(bool condition, const Sentence& sentence) {
  if (!condition) throw std::invalid_argument(sentence);
}

}  // namespace atlas_kernels
