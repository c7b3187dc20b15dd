// SPDX-License-Identifier: MIT
// Routing decisions as Megatron-LM records them: router_trace_rank*.jsonl, a line per step and
// layer, of which these fields count:
//   step, layer, rank, num_tokens, topk (optional), block (optional), mtp_idx (optional),
//   top_indices (a list of expert ids per token; -1 for none), top_weights (optional, likewise).
#ifndef INSPECT_ROUTER_TRACE_HPP
#define INSPECT_ROUTER_TRACE_HPP

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "json_reader.hpp"
#include "tensor.hpp"

namespace inspect_router {

/// All decisions of one layer, of all ranks and steps.
struct TraceLayer {
  Index top_k = 0;
  std::vector<std::int32_t> ids;  ///< tokens x top_k, row by row.
  std::vector<float> weights;     ///< Likewise, or empty.
  std::set<std::uint64_t> steps, ranks;

  Index tokens() const { return top_k == 0 ? 0 : static_cast<Index>(ids.size()) / top_k; }
  gatepro::MatrixView<const std::int32_t> ids_TK() const { return {ids.data(), tokens(), top_k}; }
  /// Not if they are empty.
  gatepro::MatrixView<const float> weights_TK() const { return {weights.data(), tokens(), top_k}; }
};

/// The block ("decoder", or "mtp" with a number), and the layer in it.
struct TraceKey {
  std::string block;
  std::uint64_t mtp = 0;
  std::uint64_t layer = 0;
  bool operator<(const TraceKey& other) const {
    return std::tie(block, mtp, layer) < std::tie(other.block, other.mtp, other.layer);
  }
};

using Trace = std::map<TraceKey, TraceLayer>;

namespace detail {

/// One line.
class RecordReader : public JsonReader {
 public:
  RecordReader(const std::string& file, std::uint64_t line)
      : JsonReader(file, "line " + std::to_string(line), 4) {}

  /// Adds the decisions to their layer, unless a rule is broken.
  void add_to(Trace& trace) {
    for (const char* field : {"step", "layer", "rank", "num_tokens", "top_indices"}) {
      if (seen_.count(field) == 0) fail(std::string("lacks ") + field);
    }
    const std::uint64_t top_k = ids_.width;
    if (ids_.rows != tokens_) {
      fail("top_indices has " + std::to_string(ids_.rows) + " tokens, num_tokens says " +
           std::to_string(tokens_));
    }
    if (tokens_ == 0) return;
    if (seen_.count("topk") != 0 && top_k != topk_) {
      fail("top_indices has " + std::to_string(top_k) + " ids per token, topk says " +
           std::to_string(topk_));
    }
    check_distinct();
    const bool weighted = seen_.count("top_weights") != 0;
    if (weighted && (weights_.rows != tokens_ || weights_.width != top_k)) {
      fail("top_weights has another shape than top_indices");
    }
    append(trace[key_], weighted);
  }

 private:
  static constexpr std::uint64_t most = (std::uint64_t{1} << 63) - 1;
  static constexpr std::uint64_t most_experts = 1 << 16;

  /// A list of lists of one length.
  struct Table {
    std::uint64_t rows = 0, width = 0, filled = 0;
  };

  Table* table() {
    if (path().empty()) return nullptr;
    return path()[0] == "top_indices" ? &ids_ : path()[0] == "top_weights" ? &weights_ : nullptr;
  }

  void begin(bool is_array) override {
    Table* rows = depth() == 0 ? nullptr : table();
    if (rows == nullptr) return;
    seen_.insert(path()[0]);
    if (!is_array || depth() > 2) fail("need a list of lists of numbers");
    if (depth() == 2) rows->filled = 0;
  }
  void end(bool) override {
    Table* rows = depth() == 2 ? table() : nullptr;
    if (rows == nullptr) return;
    if (rows->filled == 0) fail("need at least one number per token");
    if (rows->rows != 0 && rows->filled != rows->width) {
      fail("need lists of one length (token " + std::to_string(rows->rows) + " has " +
           std::to_string(rows->filled) + ", the others have " + std::to_string(rows->width) + ")");
    }
    rows->width = rows->filled;
    ++rows->rows;
  }

  void value(const JsonValue& element) override {
    if (Table* rows = table()) {
      if (depth() != 3) fail("need a list of lists of numbers");
      ++rows->filled;
      rows == &ids_ ? add_id(element) : add_weight(element);
      return;
    }
    if (depth() != 1) return;  // a field that does not count
    const std::string& field = path()[0];
    seen_.insert(field);
    if (field == "step") step_ = whole(element, most);
    if (field == "rank") rank_ = whole(element, most);
    if (field == "layer") key_.layer = whole(element, 1000000);
    if (field == "mtp_idx" && element.kind != JsonValue::Kind::null) {
      key_.mtp = whole(element, 1000000);
    }
    if (field == "num_tokens") tokens_ = whole(element, most);
    if (field == "topk") topk_ = whole(element, most_experts);
    if (field == "block") {
      key_.block = text(element);
      if (key_.block.size() > 64) fail("need a name of at most 64 bytes");
    }
  }

  void add_id(const JsonValue& element) {
    const bool none = element.kind == JsonValue::Kind::negative && element.whole == 1;
    ids_list_.push_back(none ? -1 : static_cast<std::int32_t>(whole(element, most_experts - 1)));
  }
  void add_weight(const JsonValue& element) {
    using Kind = JsonValue::Kind;
    if (element.kind == Kind::null) {  // NaN, which JSON lacks
      weights_list_.push_back(std::nanf(""));
    } else if (element.kind == Kind::text || element.kind == Kind::boolean) {
      fail("need numbers, or null for NaN");
    } else {
      weights_list_.push_back(static_cast<float>(element.real));
    }
  }

  void check_distinct() {
    std::vector<std::int32_t> row;
    for (std::uint64_t t = 0; t < tokens_; ++t) {
      const auto first = ids_list_.begin() + static_cast<std::ptrdiff_t>(t * ids_.width);
      row.assign(first, first + static_cast<std::ptrdiff_t>(ids_.width));
      std::sort(row.begin(), row.end());
      const auto twice = std::adjacent_find(
          row.begin(), row.end(), [](std::int32_t a, std::int32_t b) { return a == b && a != -1; });
      if (twice != row.end()) {
        fail("top_indices of token " + std::to_string(t) + " has expert " + std::to_string(*twice) +
             " twice");
      }
    }
  }

  void append(TraceLayer& layer, bool weighted) {
    const auto top_k = static_cast<Index>(ids_.width);
    const bool fresh = layer.top_k == 0;
    if (!fresh && layer.top_k != top_k) {
      fail("has " + std::to_string(top_k) + " ids per token, earlier lines of the layer have " +
           std::to_string(layer.top_k));
    }
    // Weights count only if every record of the layer has them.
    if (weighted && (fresh || !layer.weights.empty())) {
      layer.weights.insert(layer.weights.end(), weights_list_.begin(), weights_list_.end());
    } else {
      layer.weights.clear();
    }
    layer.top_k = top_k;
    layer.ids.insert(layer.ids.end(), ids_list_.begin(), ids_list_.end());
    layer.steps.insert(step_);
    layer.ranks.insert(rank_);
  }

  std::set<std::string> seen_;
  TraceKey key_{"decoder", 0, 0};
  std::uint64_t step_ = 0, rank_ = 0, tokens_ = 0, topk_ = 0;
  Table ids_, weights_;
  std::vector<std::int32_t> ids_list_;
  std::vector<float> weights_list_;
};

inline void add_line(const Source& source, std::uint64_t number, const std::string& text,
                     Trace& trace) {
  if (text.find_first_not_of(" \t\r") == std::string::npos) return;
  RecordReader record(source.name(), number);
  record.parse(text);
  record.add_to(trace);
}

}  // namespace detail

/// Adds the decisions of one file.
inline void add_trace(const Source& source, Trace& trace) {
  constexpr std::uint64_t block = 1 << 20;
  constexpr std::size_t longest = std::size_t{1} << 28;
  std::uint64_t number = 1;
  std::string line;
  for (std::uint64_t at = 0; at < source.size(); at += block) {
    const std::string part = source.read(at, std::min(block, source.size() - at));
    std::size_t first = 0;
    for (std::size_t end = part.find('\n'); end != std::string::npos;
         end = part.find('\n', first)) {
      line.append(part, first, end - first);
      detail::add_line(source, number++, line, trace);
      line.clear();
      first = end + 1;
    }
    line.append(part, first, std::string::npos);
    if (line.size() > longest) {
      refuse(source.name(), "line " + std::to_string(number), "need at most 256 MiB");
    }
  }
  detail::add_line(source, number, line, trace);
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_TRACE_HPP
