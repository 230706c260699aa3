// Memory that a step over whole tensors reaches twice.
#include "whole.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tensors.h"

namespace py = pybind11;

namespace fastopt {

bool share_memory(const py::list& written, const py::list& read_only) {
  using Extent = std::pair<char*, char*>;
  std::vector<Extent> extents;
  const auto extent_of = [](const py::handle& tensor) {
    View view;
    read_anywhere(tensor.ptr(), &view);
    return extent(view);
  };
  for (const py::handle tensor : written) {
    const Extent found = extent_of(tensor);
    if (found.first != found.second) extents.push_back(found);
  }
  std::sort(extents.begin(), extents.end());
  for (size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].first < extents[i - 1].second) return true;
  }
  for (const py::handle tensor : read_only) {
    const Extent found = extent_of(tensor);
    const auto behind =
        std::lower_bound(extents.begin(), extents.end(), found.second,
                         [](const Extent& extent, const char* end) { return extent.first < end; });
    if (found.first != found.second && behind != extents.begin() &&
        (behind - 1)->second > found.first) {
      return true;
    }
  }
  return false;
}

}  // namespace fastopt
