// Memory that a step over whole tensors reaches twice.
#include "whole.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tensors.h"

namespace py = pybind11;

namespace fastopt {

bool overlap(std::vector<Extent>& written, const std::vector<Extent>& read_only) {
  std::sort(written.begin(), written.end());
  for (size_t i = 1; i < written.size(); ++i) {
    if (written[i].first < written[i - 1].second) return true;
  }
  return std::any_of(read_only.begin(), read_only.end(),
                     [&](const Extent& found) { return meets(written, found); });
}

bool share_memory(const py::list& written, const py::list& read_only) {
  std::vector<Extent> extents[2];
  const auto extent_of = [](const py::handle& tensor) {
    View view;
    read_anywhere(tensor.ptr(), &view);
    return extent(view);
  };
  for (int which = 0; which < 2; ++which) {
    for (const py::handle tensor : which ? read_only : written) {
      const Extent found = extent_of(tensor);
      if (found.first != found.second) extents[which].push_back(found);
    }
  }
  return overlap(extents[0], extents[1]);
}

}  // namespace fastopt
