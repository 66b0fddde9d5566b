// splat_peaks: a text file of activation peaks -> a NIfTI image with one volume for each study.
//
//   splat_peaks PEAKS OUT.nii [--fwhm MM] [--mode sum|max|union] [--radius MM] [--voxel MM]
//
// PEAKS has four columns: study, x, y, z (mm, MNI152), between tabs or, on lines without one, between
// spaces. A header, blank lines and lines that start with # are skipped. Volumes are in the order in
// which the studies appear.

#include <splat/splat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using atlas_kernels::SplatMode;
using atlas_kernels::SplatProblem;

namespace {

constexpr const char* kUsage =
    "Usage: splat_peaks PEAKS OUT.nii [--fwhm MM] [--mode sum|max|union] [--radius MM] [--voxel MM]\n"
    "Draws each study's peaks as Gaussians (FWHM 6 mm, combined by max), or with --radius as\n"
    "spheres, on the MNI152 grid of 2 mm voxels. PEAKS has the columns study, x, y, z (mm).\n";

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  std::string peaks, out;
  SplatMode mode = SplatMode::max;
  double width = 6;  // FWHM or radius, mm
  double voxel = 2;  // mm
};

struct Study {
  std::string name;
  std::vector<double> peaks;  // (n, 3) mm: z, y, x
};

bool parse_number(const std::string& text, double& value) {
  char* end = nullptr;
  value = std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0' && std::isfinite(value);
}

double parse_mm(const std::string& option, const std::string& text, double least, double most) {
  double value;
  if (parse_number(text, value) && value >= least && value <= most) return value;
  std::ostringstream sentence;
  sentence << option << " must be " << least << " to " << most << " mm, got \"" << text << '"';
  throw UsageError(sentence.str());
}

SplatMode parse_mode(const std::string& name) {
  if (name == "sum") return SplatMode::sum;
  if (name == "max") return SplatMode::max;
  if (name == "union") return SplatMode::union_;
  throw UsageError("--mode must be sum, max or union, got \"" + name + '"');
}

Options parse_options(const std::vector<std::string>& arguments) {
  Options options;
  std::vector<std::string> files;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    if (name.rfind("--", 0) != 0) {
      files.push_back(name);
      continue;
    }
    if (i + 1 == arguments.size()) throw UsageError(name + " needs a value");
    const std::string& value = arguments[++i];
    if (name == "--fwhm") {
      options.width = parse_mm(name, value, 0.1, 100);
    } else if (name == "--radius") {
      options.width = parse_mm(name, value, 0.1, 100);
      options.mode = SplatMode::sphere;
    } else if (name == "--mode") {
      options.mode = parse_mode(value);
    } else if (name == "--voxel") {
      options.voxel = parse_mm(name, value, 0.5, 50);
    } else {
      throw UsageError("no option is called " + name);
    }
  }
  if (files.size() != 2) throw UsageError("two files are wanted: PEAKS and OUT.nii");
  options.peaks = files[0];
  options.out = files[1];
  return options;
}

std::vector<std::string> split_columns(const std::string& line) {
  std::vector<std::string> columns;
  std::istringstream stream(line);
  std::string column;
  if (line.find('\t') == std::string::npos) {
    while (stream >> column) columns.push_back(column);
  } else {
    while (std::getline(stream, column, '\t')) columns.push_back(column);
  }
  return columns;
}

// Fills zyx from four columns. Returns a complaint, empty where there is none.
std::string parse_row(const std::vector<std::string>& columns, double* zyx, int& bad) {
  if (columns.size() != 4) {
    return "expected 4 columns (study, x, y, z), got " + std::to_string(columns.size());
  }
  std::string complaint;
  for (int axis = 2; axis >= 0; --axis) {
    const std::string& text = columns[static_cast<size_t>(axis) + 1];
    if (parse_number(text, zyx[2 - axis])) continue;
    complaint = std::string(1, "xyz"[axis]) + " must be a finite number of mm, got \"" + text + '"';
    ++bad;
  }
  return complaint;
}

std::vector<Study> read_studies(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + ": cannot be read: " + std::strerror(errno));
  std::vector<Study> studies;
  std::map<std::string, size_t> places;
  std::string line;
  bool first = true;  // row that is neither blank nor a comment: the one that may be a header
  for (int64_t row = 1; std::getline(file, line); ++row) {
    if (row == 1 && line.rfind("\xEF\xBB\xBF", 0) == 0) line.erase(0, 3);  // byte order mark
    if (!line.empty() && line.back() == '\r') line.pop_back();
    const size_t start = line.find_first_not_of(" \t");
    if (start == std::string::npos || line[start] == '#') continue;
    const std::vector<std::string> columns = split_columns(line);
    double zyx[3];
    int bad = 0;
    const std::string complaint = parse_row(columns, zyx, bad);
    const bool header = first && bad == 3;
    first = false;
    if (header) continue;
    if (!complaint.empty()) {
      throw std::runtime_error(path + ", row " + std::to_string(row) + ": " + complaint);
    }
    const auto [place, is_new] = places.try_emplace(columns[0], studies.size());
    if (is_new) studies.push_back({columns[0], {}});
    std::vector<double>& peaks = studies[place->second].peaks;
    peaks.insert(peaks.end(), zyx, zyx + 3);
  }
  if (file.bad()) throw std::runtime_error(path + ": cannot be read");
  if (studies.empty()) throw std::runtime_error(path + ": holds no peaks");
  return studies;
}

// The box of MNI152's 2 mm grid, 91 x 109 x 91 voxels. The library's last axis is the one whose voxels
// are neighbours in memory, which in NIfTI is x: so its axes are z, y, x here.
SplatProblem make_problem(const Options& options) {
  constexpr double kCorner[3] = {-73, -127, -91}, kSize[3] = {182, 218, 182};
  SplatProblem problem;
  for (int axis = 0; axis < 3; ++axis) {
    problem.shape[axis] = static_cast<int64_t>(std::ceil(kSize[axis] / options.voxel));
    problem.spacing[axis] = options.voxel;
    problem.origin[axis] = kCorner[axis] + options.voxel / 2;
  }
  problem.mode = options.mode;
  problem.widths = &options.width;
  return problem;
}

// NIfTI-1: 348 bytes of header and 4 that say no extension follows. Numbers are in the machine's byte
// order, which readers tell from the first. https://nifti.nimh.nih.gov/nifti-1
std::vector<char> nifti_header(const SplatProblem& grid, size_t n_volumes) {
  std::vector<char> header(352, 0);
  const auto put = [&](size_t at, auto value) { std::memcpy(&header[at], &value, sizeof value); };
  put(0, int32_t{348});
  put(40, int16_t{4});  // dimensions
  for (size_t axis = 0; axis < 3; ++axis) {
    const size_t from = 2 - axis;
    put(42 + 2 * axis, static_cast<int16_t>(grid.shape[from]));
    put(80 + 4 * axis, static_cast<float>(grid.spacing[from]));
    put(280 + 20 * axis, static_cast<float>(grid.spacing[from]));  // srow: the affine's diagonal
    put(292 + 16 * axis, static_cast<float>(grid.origin[from]));   // and its last column
  }
  put(48, static_cast<int16_t>(n_volumes));
  for (size_t at = 50; at < 56; at += 2) put(at, int16_t{1});
  put(70, int16_t{16});  // float32
  put(72, int16_t{32});  // bits a voxel
  put(76, 1.0f);
  put(92, 1.0f);         // from volume to volume
  put(108, 352.0f);      // where the voxels start
  put(112, 1.0f);        // slope
  put(123, char{2});     // mm
  put(254, int16_t{4});  // the affine leads to MNI152
  std::memcpy(&header[344], "n+1", 4);
  return header;
}

// Draws some studies at a time, so that memory does not grow with their number.
void write_volumes(const std::vector<Study>& studies, SplatProblem problem, std::ofstream& file) {
  const size_t batch = std::max<size_t>(1, (1 << 24) / static_cast<size_t>(problem.n_elements()));
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::vector<float> volumes;
  for (size_t begin = 0; begin < studies.size(); begin += batch) {
    const size_t end = std::min(studies.size(), begin + batch);
    std::vector<double> peaks;
    std::vector<int64_t> offsets{0};
    for (size_t study = begin; study < end; ++study) {
      peaks.insert(peaks.end(), studies[study].peaks.begin(), studies[study].peaks.end());
      offsets.push_back(static_cast<int64_t>(peaks.size() / 3));
    }
    problem.peaks = peaks.data();
    problem.offsets = offsets.data();
    problem.n_peaks = offsets.back();
    problem.n_studies = static_cast<int64_t>(end - begin);
    volumes.resize((end - begin) * static_cast<size_t>(problem.n_elements()));
    atlas_kernels::splat_cpu(problem, volumes.data(), threads);
    file.write(reinterpret_cast<const char*>(volumes.data()),
               static_cast<std::streamsize>(volumes.size() * sizeof(float)));
  }
}

// Under another name until it is whole.
void write_image(const std::string& out, const std::vector<Study>& studies,
                 const SplatProblem& problem) {
  const std::string part = out + ".part";
  try {
    std::ofstream file(part, std::ios::binary);
    const std::vector<char> header = nifti_header(problem, studies.size());
    file.write(header.data(), static_cast<std::streamsize>(header.size()));
    if (file) write_volumes(studies, problem, file);
    file.close();
    if (!file) throw std::runtime_error(out + ": cannot be written: " + std::strerror(errno));
    std::filesystem::rename(part, out);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    throw;
  }
}

void run(const Options& options) {
  const std::vector<Study> studies = read_studies(options.peaks);
  constexpr size_t kMost = 32767;  // NIfTI-1 counts volumes in 16 bits
  if (studies.size() > kMost) {
    throw std::runtime_error(options.peaks + ": holds " + std::to_string(studies.size()) +
                             " studies, more than the 32767 volumes of a NIfTI-1 image");
  }
  const SplatProblem problem = make_problem(options);
  write_image(options.out, studies, problem);
  std::printf("%s: %lld x %lld x %lld voxels of %g mm, %zu studies\n", options.out.c_str(),
              static_cast<long long>(problem.shape[2]), static_cast<long long>(problem.shape[1]),
              static_cast<long long>(problem.shape[0]), options.voxel, studies.size());
  for (size_t i = 0; i < studies.size(); ++i) {
    std::printf("%zu\t%s\t%zu peaks\n", i, studies[i].name.c_str(), studies[i].peaks.size() / 3);
  }
}

}  // namespace

int main(int count, char** values) {
  try {
    run(parse_options({values + 1, values + count}));
    return 0;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%sError: %s\n", kUsage, error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "Error: %s\n", error.what());
    return 1;
  }
}
