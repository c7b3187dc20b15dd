// SPDX-License-Identifier: MIT
// From what the user names to a report per layer.
#ifndef INSPECT_ROUTER_INSPECTION_HPP
#define INSPECT_ROUTER_INSPECTION_HPP

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "layer_report.hpp"
#include "settings.hpp"

namespace inspect_router {

/// The reports of all layers; random routers are drawn once per shape. Not to be moved: reports
/// point into it.
class Inspection {
 public:
  explicit Inspection(const Settings& settings) : settings_(settings) {
    if (!settings.trace.empty()) trace_ = find_trace(settings.trace);
    if (settings.weights.empty()) {
      for (const auto& [key, layer] : trace_) add_traced(key, layer);
    } else {
      for (const StoredRouter& router : find_routers(settings.weights, settings.name)) {
        add_router(router);
      }
      if (!trace_.empty()) need_a_traced_layer();
    }
    if (layers_.empty()) throw UserError(settings.trace + ": has no decisions");
  }
  Inspection(const Inspection&) = delete;
  Inspection& operator=(const Inspection&) = delete;

  const std::vector<LayerReport>& layers() const { return layers_; }
  const Settings& settings() const { return settings_; }

 private:
  static constexpr Index most_experts = 2048;  // beyond, no picture shows anything

  void add_router(const StoredRouter& stored) {
    RowMatrix<float> w_EH = stored.load();
    if (settings_.transpose) w_EH = RowMatrix<float>(w_EH.transpose());
    const std::string field = "tensor " + shown(stored.tensor.name);
    if (w_EH.rows() < 2 || w_EH.rows() > most_experts) {
      refuse(stored.source->name(), field,
             "need 2 to 2048 experts as rows (got " + std::to_string(w_EH.rows()) + " x " +
                 std::to_string(w_EH.cols()) + "; --transpose reads [H, E])");
    }
    LayerReport report = start(stored.label, stored.layer, w_EH.rows());
    report.hidden = w_EH.cols();
    report.likeness = likeness(w_EH);
    report.spectral_entropy = spectral_entropy(*report.likeness);
    report.random = &random_of(w_EH.rows(), w_EH.cols());
    if (!settings_.x.empty()) report.routing = route_x(stored, w_EH);
    if (!settings_.trace.empty()) add_trace_of(stored, report);
    finish(std::move(report));
  }

  RoutingSummary route_x(const StoredRouter& stored, const RowMatrix<float>& w_EH) const {
    std::string path = settings_.x;
    const std::size_t star = path.find('*');
    if (star != std::string::npos) {
      if (!stored.layer) {
        throw UserError("--x has a '*', but " + shown(stored.label) + " has no layer's number");
      }
      path.replace(star, 1, std::to_string(*stored.layer));
    }
    const FileSource source(path);
    const RowMatrix<float> x_TH = read_matrix(source, read_npy_header(source));
    if (x_TH.cols() != w_EH.cols()) {
      refuse(path, "shape",
             "need " + std::to_string(w_EH.cols()) + " columns, as " + shown(stored.label) +
                 " has (got " + std::to_string(x_TH.cols()) + ")");
    }
    if (settings_.top_k > w_EH.rows()) {
      throw UserError("--top-k is " + std::to_string(settings_.top_k) + ", but " +
                      shown(stored.label) + " has only " + std::to_string(w_EH.rows()) +
                      " experts");
    }
    return route(x_TH, w_EH, settings_.top_k, "routed from " + fs::path(path).filename().string());
  }

  void add_trace_of(const StoredRouter& stored, LayerReport& report) const {
    if (!stored.layer) return;
    const std::int64_t number = static_cast<std::int64_t>(*stored.layer) + settings_.trace_offset;
    const auto found = trace_.find({"decoder", 0, static_cast<std::uint64_t>(number)});
    if (number < 0 || found == trace_.end()) return;
    report.routing = summary_of(found->second, report.experts, number);
  }

  /// A trace that fits none of the weights would be passed over in silence.
  void need_a_traced_layer() const {
    const auto traced = [](const LayerReport& layer) { return layer.routing.has_value(); };
    if (std::any_of(layers_.begin(), layers_.end(), traced)) return;
    std::string numbers;
    for (const auto& [key, layer] : trace_) {
      if (key.block == "decoder") numbers += " " + std::to_string(key.layer);
    }
    throw UserError(settings_.trace + ": has no layer of these weights, which begin with " +
                    shown(layers_.front().label) + "; its decoder has the layers" +
                    numbers.substr(0, 200) + " (see --trace-offset)");
  }

  void add_traced(const TraceKey& key, const TraceLayer& layer) {
    std::int32_t largest = 1;
    for (const std::int32_t id : layer.ids) largest = std::max(largest, id);
    const Index experts = settings_.experts != 0 ? static_cast<Index>(settings_.experts)
                                                 : static_cast<Index>(largest) + 1;
    if (experts > most_experts) {
      throw UserError(settings_.trace + ": need at most 2048 experts (got the id " +
                      std::to_string(largest) + ")");
    }
    std::string label = "layer " + std::to_string(key.layer);
    if (key.block != "decoder") {
      label = key.block + " " + std::to_string(key.mtp) + " " + label;
    }
    LayerReport report = start(label, key.layer, experts);
    report.routing = summary_of(layer, experts, static_cast<std::int64_t>(key.layer));
    finish(std::move(report));
  }

  RoutingSummary summary_of(const TraceLayer& layer, Index experts, std::int64_t number) const {
    for (const std::int32_t id : layer.ids) {
      if (id >= experts) {
        throw UserError(settings_.trace + ": layer " + std::to_string(number) +
                        ": need ids below the number of experts (got " + std::to_string(id) +
                        ", there are " + std::to_string(experts) + ")");
      }
    }
    const auto many = [](std::size_t count, const std::string& what) {
      return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
    };
    RoutingSummary summary = summarise(layer.ids_TK(), experts,
                                       "traced over " + many(layer.steps.size(), "step") + " on " +
                                           many(layer.ranks.size(), "rank"));
    if (!layer.weights.empty()) add_weights(layer.ids_TK(), layer.weights_TK(), summary);
    return summary;
  }

  const RandomRouters& random_of(Index experts, Index hidden) {
    const auto found = random_.find({experts, hidden});
    if (found != random_.end()) return found->second;
    return random_.emplace(std::pair(experts, hidden), random_routers(experts, hidden))
        .first->second;
  }

  LayerReport start(const std::string& label, std::optional<std::uint64_t> layer,
                    Index experts) const {
    LayerReport report;
    report.label = label;
    report.layer = layer;
    report.id = std::to_string(layers_.size()) + "_";
    for (const char c : label.substr(0, 80)) {
      const bool plain =
          (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-';
      report.id += plain ? c : '_';
    }
    report.experts = experts;
    return report;
  }
  void finish(LayerReport report) {
    complete(report, settings_.group_at);
    layers_.push_back(std::move(report));
  }

  Settings settings_;
  Trace trace_;
  std::map<std::pair<Index, Index>, RandomRouters> random_;
  std::vector<LayerReport> layers_;
};

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_INSPECTION_HPP
