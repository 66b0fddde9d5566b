// splat on the CPU: forward and backward.
//
// The Gaussian is separable, so each focus gets three short tables (its distance to the voxels along
// x, y and z, and the exponential of each); a voxel costs one multiply and one add.
//
// Loop order: the unit of work is a slab, kSlabPlanes x-planes of one study and width. Within it,
// plane by plane (a plane stays in cache from its zero fill to its last focus), then the foci in
// their order, then rows (x, y), then z, where memory is contiguous. A ball shortens each row.
//   forward        every slab writes its own part of the output: no atomics, no second pass
//   backward       every slab gathers each of its foci's gradient moments; these are added in a fixed
//                  order at the end. `max` first repeats the drawing with a map of winners.
// Slabs do not depend on the number of threads, hence neither do the bits.
//
// Work: O(B K X Y Z) for the fill + O(K * foci * voxels in a support). Tables in double, rounded
// once, keep float32 within 1e-6 relative of float64 (for weights of one sign).
//
// Siblings: splat.h (contract), atlas_kernels/splat/reference.py (the specification).

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/checks.h"
#include "common/multiversion.h"
#include "common/parallel.h"
#include "splat/splat.h"

namespace atlas_kernels {
namespace {

constexpr int64_t kSlabPlanes = 16;
constexpr double kFwhmPerSigma = 2.3548200450309493;  // 2 sqrt(2 ln 2)

// Consecutive voxels [begin, end) of one axis.
struct Span {
  int64_t begin, end;
};

// One focus along one axis: the voxels it can reach, and the one nearest to it. Their tables start at
// `table`.
struct Reach {
  Span span;
  int64_t nearest;
  size_t table;
};

struct Focus {
  int64_t peak;
  double weight;
  Reach axis[3];
};

// The foci of one study at one width that reach one slab, with their tables.
template <typename T>
struct Scene {
  const SplatProblem& problem;
  Span planes;
  double sigma;
  double radius2;  // a voxel is covered where the squared distance is at most this
  std::vector<Focus> foci;
  std::vector<double> mm_tables;  // voxel centre - peak
  std::vector<T> gauss_tables;    // exp(-mm^2 / (2 sigma^2))

  const double* mm(const Focus& focus, int axis) const {
    return mm_tables.data() + focus.axis[axis].table;
  }
  const T* gauss(const Focus& focus, int axis) const {
    return gauss_tables.data() + focus.axis[axis].table;
  }
};

int64_t slabs_per_volume(const SplatProblem& problem) {
  return (problem.shape[0] + kSlabPlanes - 1) / kSlabPlanes;
}

double offset_mm(const SplatProblem& problem, int axis, int64_t voxel, double peak) {
  return (problem.origin[axis] + problem.spacing[axis] * static_cast<double>(voxel)) - peak;
}

// To an integer within [low, high], also from infinity (an untruncated kernel) and NaN.
int64_t clamped(double value, int64_t low, int64_t high) {
  if (!(value > static_cast<double>(low))) return low;
  return value < static_cast<double>(high) ? static_cast<int64_t>(value) : high;
}

// The voxels of `within` that the kernel covers along one axis. Division only finds a first guess:
// the ends are decided by the comparison that defines the support, as in the reference.
Span reach_span(const SplatProblem& problem, int axis, double peak, double radius2, Span within) {
  const double radius = std::sqrt(radius2), step = problem.spacing[axis];
  const double centre = (peak - problem.origin[axis]) / step, half = radius / std::abs(step);
  Span span{clamped(std::floor(centre - half), within.begin, within.end),
            clamped(std::ceil(centre + half) + 1, within.begin, within.end)};
  const auto covered = [&](int64_t voxel) {
    const double d = offset_mm(problem, axis, voxel, peak);
    return d * d <= radius2;
  };
  while (span.begin < span.end && !covered(span.begin)) ++span.begin;
  while (span.begin < span.end && !covered(span.end - 1)) --span.end;
  return span;
}

template <typename T>
void add_tables(Scene<T>& scene, Focus& focus, const double* peak) {
  for (int axis = 0; axis < 3; ++axis) {
    Reach& reach = focus.axis[axis];
    reach.table = scene.mm_tables.size();
    double shortest = HUGE_VAL;
    for (int64_t n = reach.span.begin; n < reach.span.end; ++n) {
      const double d = offset_mm(scene.problem, axis, n, peak[axis]);
      const double exponent = -0.5 * (d * d) / (scene.sigma * scene.sigma);
      scene.mm_tables.push_back(d);
      scene.gauss_tables.push_back(static_cast<T>(std::exp(exponent)));
      if (std::abs(d) < shortest) {
        shortest = std::abs(d);
        reach.nearest = n;
      }
    }
  }
}

template <typename T>
Scene<T> make_scene(const SplatProblem& problem, int64_t study, int64_t width, Span planes) {
  const double sigma = problem.fwhm[width] / kFwhmPerSigma;
  const double radius = problem.truncate * sigma;
  Scene<T> scene{problem, planes, sigma, radius * radius, {}, {}, {}};
  for (int64_t p = problem.offsets[study]; p < problem.offsets[study + 1]; ++p) {
    const double* peak = problem.peaks + 3 * p;
    Focus focus{p, problem.weights ? problem.weights[p] : 1.0, {}};
    bool visible = true;
    for (int axis = 0; axis < 3 && visible; ++axis) {
      const Span within = axis == 0 ? planes : Span{0, problem.shape[axis]};
      focus.axis[axis].span = reach_span(problem, axis, peak[axis], scene.radius2, within);
      visible = focus.axis[axis].span.begin < focus.axis[axis].span.end;
    }
    if (!visible) continue;
    add_tables(scene, focus, peak);
    scene.foci.push_back(focus);
  }
  return scene;
}

// ---- the rows of one focus in one plane -------------------------------------------------------

// One row along z: `z` indexes voxels of the grid, `first` is where the row begins in the z tables.
struct Row {
  int64_t y;
  Span z;
  int64_t first;
  double dx, dy;        // mm
  double gauss_xy;      // exp of the two
};

// Calls visit(row) for each row (x, y) of the focus that holds a covered voxel.
template <typename T, typename Visit>
ATLAS_INLINE void for_each_row(const Scene<T>& scene, const Focus& focus, int64_t x,
                               const Visit& visit) {
  const Span xs = focus.axis[0].span, ys = focus.axis[1].span, zs = focus.axis[2].span;
  if (x < xs.begin || x >= xs.end) return;
  const double dx = scene.mm(focus, 0)[x - xs.begin];
  const double gauss_x = static_cast<double>(scene.gauss(focus, 0)[x - xs.begin]);
  const double *mm_y = scene.mm(focus, 1), *mm_z = scene.mm(focus, 2);
  const T* gauss_y = scene.gauss(focus, 1);
  const bool ball = scene.problem.support == SplatSupport::ball;

  // A ball's rows grow and shrink little by little: the ends of each start from the row before.
  const int64_t nearest = focus.axis[2].nearest;
  Span z = ball ? Span{nearest, nearest + 1} : zs;
  for (int64_t y = ys.begin; y < ys.end; ++y) {
    const double dy = mm_y[y - ys.begin], xy2 = dx * dx + dy * dy;
    const auto covered = [&](int64_t voxel) {
      const double dz = mm_z[voxel - zs.begin];
      return xy2 + dz * dz <= scene.radius2;
    };
    if (ball) {
      if (!covered(nearest)) continue;
      while (z.begin > zs.begin && covered(z.begin - 1)) --z.begin;
      while (!covered(z.begin)) ++z.begin;
      while (z.end < zs.end && covered(z.end)) ++z.end;
      while (!covered(z.end - 1)) --z.end;
    }
    const double gauss_xy = gauss_x * static_cast<double>(gauss_y[y - ys.begin]);
    visit(Row{y, z, z.begin - zs.begin, dx, dy, gauss_xy});
  }
}

// weight * gauss_x * gauss_y, rounded once: forward and backward must agree to the bit on who wins.
template <typename T>
ATLAS_INLINE T row_scale(const Focus& focus, const Row& row) {
  return static_cast<T>(focus.weight * row.gauss_xy);
}

// ---- forward ----------------------------------------------------------------------------------

template <SplatMode mode, typename T>
ATLAS_INLINE void draw_focus(const Scene<T>& scene, const Focus& focus, int64_t x, T* plane) {
  const T* gauss_z = scene.gauss(focus, 2);
  const int64_t row_length = scene.problem.shape[2];
  for_each_row(scene, focus, x, [&](const Row& row) {
    const T scale = row_scale<T>(focus, row);
    const T* ATLAS_RESTRICT gauss = gauss_z + row.first;
    T* ATLAS_RESTRICT out = plane + row.y * row_length + row.z.begin;
    const int64_t n = row.z.end - row.z.begin;
    for (int64_t i = 0; i < n; ++i) {
      const T value = scale * gauss[i];
      if constexpr (mode == SplatMode::sum) {
        out[i] += value;
      } else {
        out[i] = value > out[i] ? value : out[i];
      }
    }
  });
}

// `out` is where the slab's first plane starts.
template <typename T>
ATLAS_INLINE void draw_slab(const Scene<T>& scene, T* out) {
  const int64_t plane_size = scene.problem.shape[1] * scene.problem.shape[2];
  for (int64_t x = scene.planes.begin; x < scene.planes.end; ++x, out += plane_size) {
    std::fill_n(out, plane_size, T(0));
    for (const Focus& focus : scene.foci) {
      if (scene.problem.mode == SplatMode::sum) {
        draw_focus<SplatMode::sum>(scene, focus, x, out);
      } else {
        draw_focus<SplatMode::max>(scene, focus, x, out);
      }
    }
  }
}

ATLAS_MULTIVERSION void draw(const Scene<float>& scene, float* out) { draw_slab(scene, out); }
ATLAS_MULTIVERSION void draw(const Scene<double>& scene, double* out) { draw_slab(scene, out); }

// ---- backward ---------------------------------------------------------------------------------

// What the gradients of one focus are made of: sums over its voxels of grad_out * gauss * (1, d, |d|^2).
struct Moments {
  double one = 0, x = 0, y = 0, z = 0, square = 0;
};

// Which focus (by its place in the scene) holds the maximum of each voxel of a plane; -1 is the
// background. The lowest index wins a tie because a later focus must be strictly greater.
template <typename T>
struct Winners {
  std::vector<T> best;
  std::vector<int64_t> index;
};

template <typename T>
void find_winners(const Scene<T>& scene, int64_t x, Winners<T>& winners) {
  const size_t plane_size = static_cast<size_t>(scene.problem.shape[1] * scene.problem.shape[2]);
  winners.best.assign(plane_size, T(0));
  winners.index.assign(plane_size, -1);
  for (size_t f = 0; f < scene.foci.size(); ++f) {
    const Focus& focus = scene.foci[f];
    for_each_row(scene, focus, x, [&](const Row& row) {
      const T scale = row_scale<T>(focus, row);
      const T* gauss = scene.gauss(focus, 2) + row.first;
      const int64_t start = row.y * scene.problem.shape[2] + row.z.begin;
      for (int64_t i = 0; i < row.z.end - row.z.begin; ++i) {
        const T value = scale * gauss[i];
        if (value > winners.best[start + i]) {
          winners.best[start + i] = value;
          winners.index[start + i] = static_cast<int64_t>(f);
        }
      }
    });
  }
}

// Adds the moments of one focus over one plane. `owner`, where given, names the focus that each voxel
// of the plane belongs to; voxels of others are passed over.
template <typename T>
void gather_focus(const Scene<T>& scene, int64_t f, int64_t x, const T* grad_plane,
                  const int64_t* owner, Moments& moments) {
  const Focus& focus = scene.foci[static_cast<size_t>(f)];
  for_each_row(scene, focus, x, [&](const Row& row) {
    const T* gauss = scene.gauss(focus, 2) + row.first;
    const double* dz = scene.mm(focus, 2) + row.first;
    const int64_t start = row.y * scene.problem.shape[2] + row.z.begin;
    double one = 0, z = 0, zz = 0;
    for (int64_t i = 0; i < row.z.end - row.z.begin; ++i) {
      if (owner && owner[start + i] != f) continue;
      const double term = static_cast<double>(grad_plane[start + i]) * static_cast<double>(gauss[i]);
      one += term;
      z += term * dz[i];
      zz += term * (dz[i] * dz[i]);
    }
    moments.one += row.gauss_xy * one;
    moments.x += row.gauss_xy * row.dx * one;
    moments.y += row.gauss_xy * row.dy * one;
    moments.z += row.gauss_xy * z;
    moments.square += row.gauss_xy * ((row.dx * row.dx + row.dy * row.dy) * one + zz);
  });
}

// `grad_out` is where the slab's first plane starts; `moments` is indexed by peak.
template <typename T>
void gather_slab(const Scene<T>& scene, const T* grad_out, Moments* moments) {
  Winners<T> winners;
  const bool max = scene.problem.mode == SplatMode::max;
  const int64_t plane_size = scene.problem.shape[1] * scene.problem.shape[2];
  for (int64_t x = scene.planes.begin; x < scene.planes.end; ++x, grad_out += plane_size) {
    if (max) find_winners(scene, x, winners);
    for (size_t f = 0; f < scene.foci.size(); ++f) {
      gather_focus(scene, static_cast<int64_t>(f), x, grad_out,
                   max ? winners.index.data() : nullptr, moments[scene.foci[f].peak]);
    }
  }
}

// ---- over all slabs ---------------------------------------------------------------------------

void check(const SplatProblem& problem, int threads) {
  require(problem.n_studies >= 0 && problem.n_widths >= 0, "splat: negative number of studies or widths");
  require(threads >= 1, "splat: threads must be at least 1");
  for (int axis = 0; axis < 3; ++axis) {
    require(problem.shape[axis] > 0, "splat: the grid has an empty axis");
    require(problem.spacing[axis] != 0, "splat: the grid has a zero spacing");
  }
  require(problem.offsets[0] == 0, "splat: offsets must start at 0");
  for (int64_t b = 0; b < problem.n_studies; ++b) {
    require(problem.offsets[b] <= problem.offsets[b + 1], "splat: offsets must not decrease");
  }
}

// Calls body(scene, slab number in its volume, first voxel of the slab in the whole output).
template <typename T, typename Body>
void for_each_slab(const SplatProblem& problem, int threads, const Body& body) {
  const int64_t plane_size = problem.shape[1] * problem.shape[2];
  const int64_t slabs = slabs_per_volume(problem);
  parallel_for(problem.n_studies * problem.n_widths * slabs, threads, [&](int64_t item) {
    const int64_t slab = item % slabs, volume = item / slabs;
    const int64_t study = volume / problem.n_widths, width = volume % problem.n_widths;
    const int64_t begin = slab * kSlabPlanes;
    const Span planes{begin, std::min(begin + kSlabPlanes, problem.shape[0])};
    const Scene<T> scene = make_scene<T>(problem, study, width, planes);
    body(scene, width * slabs + slab, (volume * problem.shape[0] + begin) * plane_size);
  });
}

template <typename T>
void forward(const SplatProblem& problem, T* out, int threads) {
  check(problem, threads);
  for_each_slab<T>(problem, threads, [&](const Scene<T>& scene, int64_t, int64_t first) {
    draw(scene, out + first);
  });
}

template <typename T>
void backward(const SplatProblem& problem, const T* grad_out, double* grad_peaks,
              double* grad_weights, double* grad_fwhm, int threads) {
  check(problem, threads);
  const int64_t n_peaks = problem.offsets[problem.n_studies], slabs = slabs_per_volume(problem);

  // A focus and a slab meet in one entry, so no two slabs write to the same place.
  std::vector<Moments> moments(static_cast<size_t>(problem.n_widths * slabs * n_peaks));
  for_each_slab<T>(problem, threads, [&](const Scene<T>& scene, int64_t layer, int64_t first) {
    gather_slab(scene, grad_out + first, moments.data() + layer * n_peaks);
  });

  std::fill_n(grad_peaks, 3 * n_peaks, 0.0);
  std::fill_n(grad_weights, n_peaks, 0.0);
  std::fill_n(grad_fwhm, problem.n_widths, 0.0);
  for (int64_t layer = 0; layer < problem.n_widths * slabs; ++layer) {
    const double sigma = problem.fwhm[layer / slabs] / kFwhmPerSigma;
    for (int64_t p = 0; p < n_peaks; ++p) {
      const Moments& sum = moments[static_cast<size_t>(layer * n_peaks + p)];
      const double weight = problem.weights ? problem.weights[p] : 1.0;
      const double slope = weight / (sigma * sigma);
      grad_weights[p] += sum.one;
      grad_peaks[3 * p] += slope * sum.x;
      grad_peaks[3 * p + 1] += slope * sum.y;
      grad_peaks[3 * p + 2] += slope * sum.z;
      grad_fwhm[layer / slabs] += slope / sigma * sum.square / kFwhmPerSigma;
    }
  }
}

}  // namespace

void splat_cpu(const SplatProblem& problem, float* out, int threads) {
  forward(problem, out, threads);
}

void splat_cpu(const SplatProblem& problem, double* out, int threads) {
  forward(problem, out, threads);
}

void splat_backward_cpu(const SplatProblem& problem, const float* grad_out, double* grad_peaks,
                        double* grad_weights, double* grad_fwhm, int threads) {
  backward(problem, grad_out, grad_peaks, grad_weights, grad_fwhm, threads);
}

void splat_backward_cpu(const SplatProblem& problem, const double* grad_out, double* grad_peaks,
                        double* grad_weights, double* grad_fwhm, int threads) {
  backward(problem, grad_out, grad_peaks, grad_weights, grad_fwhm, threads);
}

}  // namespace atlas_kernels
