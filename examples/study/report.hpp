// SPDX-License-Identifier: MIT
// The report, from the files of a study. The same files give the same bytes.
#ifndef STUDY_REPORT_HPP
#define STUDY_REPORT_HPP

#include <filesystem>
#include <string>
#include <vector>

namespace study {

/// Writes docs/evidence.md and docs/study/: report.html and the figures. Returns their paths.
/// Throws UserError where `data` has no runs.csv of this grid, or `docs` cannot be written.
std::vector<std::string> write_report(const std::filesystem::path& data,
                                      const std::filesystem::path& docs);

}  // namespace study

#endif  // STUDY_REPORT_HPP
