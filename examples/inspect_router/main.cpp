// SPDX-License-Identifier: MIT
// Draws what the weights of a router, and tokens that it routed, say of its experts.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "html_report.hpp"
#include "inspection.hpp"
#include "json_report.hpp"
#include "settings.hpp"
#include "support/command_line.hpp"
#include "support/output_file.hpp"
#include "support/programs.hpp"

namespace inspect_router {
namespace {

/// A picture per layer. Returns what to tell the user.
std::string draw_sheets(const Inspection& inspection, const fs::path& folder) {
  const double limit = similarity_limit(inspection.layers());
  const bool png = inspection.settings().png;
  const bool can_convert = report::can_run("rsvg-convert");
  for (const LayerReport& layer : inspection.layers()) {
    const fs::path svg = folder / (layer.id + ".svg");
    report::OutputFile(svg).write(sheet(layer, limit));
    if (!png || !can_convert) continue;
    const fs::path target = folder / (layer.id + ".png");
    const std::string command =
        "rsvg-convert --zoom=2 --output=" + report::quoted(target.string()) + " -- " +
        report::quoted(svg.string());
    if (std::system(command.c_str()) != 0) return "No .png: rsvg-convert failed. Try " + command;
  }
  if (!png) return "Pictures: " + (folder / "*.svg").string();
  if (!can_convert) {
    return "No .png: rsvg-convert was not found (Debian: librsvg2-bin). Pictures: " +
           (folder / "*.svg").string();
  }
  return "Pictures: " + (folder / "*.png").string() + " and *.svg";
}

void print_table(const std::vector<LayerReport>& layers) {
  std::printf("%-44s %7s %8s %8s %6s %6s\n", "layer", "experts", "partner", "random", "mutual",
              "groups");
  for (const LayerReport& layer : layers) {
    std::printf("%-44s %7lld", report::plain_text(layer.label.substr(0, 44)).c_str(),
                static_cast<long long>(layer.experts));
    if (layer.likeness) {
      std::printf(" %8.3f %8.3f %6lld %6zu", layer.likeness->partners.mean,
                  layer.random->mean_with_partner,
                  static_cast<long long>(layer.likeness->graph.mutual_pairs), layer.groups.size());
    }
    std::printf("\n");
  }
}

void inspect(const Settings& settings) {
  check_settings(settings);
  const Inspection inspection(settings);
  const fs::path folder = settings.out;
  report::make_folder(folder);
  report::OutputFile(folder / "inspect.json").write(json_report(inspection));
  report::OutputFile(folder / "index.html").write(html_report(inspection));
  print_table(inspection.layers());
  const std::string pictures = draw_sheets(inspection, folder);
  std::printf("Page: %s\nNumbers: %s\n%s\n", (folder / "index.html").c_str(),
              (folder / "inspect.json").c_str(), pictures.c_str());
}

int run(int argc, char** argv) {
  Settings settings;
  CLI::App app("Draws what a router's weights, and tokens that it routed, say of its experts.");
  add_options(app, settings);
  return report::run_program("inspect_router", "not enough memory for these files", app, argc, argv,
                             [&] {
                               inspect(settings);
                               return report::finished;
                             });
}

}  // namespace
}  // namespace inspect_router

int main(int argc, char** argv) { return inspect_router::run(argc, argv); }
