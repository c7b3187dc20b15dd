// SPDX-License-Identifier: MIT
// The same for machines.
#ifndef INSPECT_ROUTER_JSON_REPORT_HPP
#define INSPECT_ROUTER_JSON_REPORT_HPP

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "inspection.hpp"

namespace inspect_router {

namespace detail {

using Json = nlohmann::ordered_json;

inline Json json_of(const gatepro::SimilarityMetrics& metrics) {
  return {{"mean", metrics.mean},
          {"deviation", metrics.deviation},
          {"smallest", metrics.smallest},
          {"largest", metrics.largest},
          {"mean_degrees", metrics.mean_degrees}};
}

inline Json json_of(const Likeness& likeness, const RandomRouters& random) {
  Json json;
  json["pairs"] = json_of(likeness.pairs);
  json["partners"] = json_of(likeness.partners);
  json["random_router"] = {{"draws", RandomRouters::draws},
                           {"mean_partner_cosine", random.mean_with_partner},
                           {"largest_cosine", random.largest},
                           {"mean_cosine", random.mean_pair},
                           {"spectral_entropy", random.spectral_entropy}};
  json["mutual_pairs"] = likeness.graph.mutual_pairs;
  json["unnamed_experts"] = likeness.graph.unnamed_experts;
  json["hub"] = likeness.graph.hub;
  json["largest_in_degree"] = likeness.graph.largest_in_degree;
  json["partner_of_expert"] = likeness.partner_E;
  Json cosines = Json::array();
  for (const double cosine : likeness.with_partner_E) {
    cosines.push_back(std::isnan(cosine) ? Json() : Json(cosine));
  }
  json["partner_cosine_of_expert"] = cosines;
  json["in_degree_of_expert"] = likeness.in_degree_E;
  return json;
}

inline Json json_of(const RoutingSummary& routing, bool has_partners) {
  Json json = {{"source", routing.source},
               {"tokens", routing.tokens},
               {"top_k", routing.top_k},
               {"load_of_expert", routing.load_E},
               {"zero_token_experts", routing.loads.zero_token_experts},
               {"max_violation", routing.loads.max_violation},
               {"variation", routing.loads.variation},
               {"gini", routing.loads.gini},
               {"normalised_entropy", routing.loads.normalised_entropy}};
  if (!routing.weight_E.empty()) {
    json["weight_of_expert"] = routing.weight_E;
    json["mean_largest_weight"] = routing.mean_largest_weight;
  }
  if (has_partners) {
    json["partner_lift"] = routing.partner_lift;
    json["partner_coactivation"] = routing.partner_rate;
  }
  if (routing.margins) {
    const auto lambda = [&](double share) {
      const double value = routing.margins->lambda_for_share(share);
      return std::isfinite(value) ? Json(value) : Json();
    };
    json["median_margin"] = routing.margins->margin(0.5);
    json["changed_by_published_lambda"] = routing.margins->changed_share(1e-4);
    json["changed_by_elimination"] = routing.margins->largest_share();
    json["lambda_that_changes"] = {
        {"1%", lambda(0.01)}, {"10%", lambda(0.1)}, {"50%", lambda(0.5)}};
  }
  return json;
}

inline Json json_of(const LayerReport& layer) {
  Json json = {{"label", layer.label}};
  if (layer.layer) json["layer"] = *layer.layer;
  json["experts"] = layer.experts;
  if (layer.likeness) {
    json["hidden"] = layer.hidden;
    json["similarity"] = json_of(*layer.likeness, *layer.random);
    json["similarity"]["spectral_entropy"] = layer.spectral_entropy;
  }
  json["cluster_order"] = layer.order;
  Json groups = Json::array();
  for (const RedundantGroup& group : layer.groups) {
    Json entry = {{"experts", group.experts}, {"mean_cosine", group.similarity}};
    if (layer.routing) {
      entry["load_share"] = group.load_share;
      entry["lift"] = group.lift;
    }
    groups.push_back(entry);
  }
  json["redundant_groups"] = groups;
  if (layer.routing) json["routing"] = json_of(*layer.routing, layer.likeness.has_value());
  return json;
}

}  // namespace detail

inline std::string json_report(const Inspection& inspection) {
  detail::Json json = {{"format", "gatepro.inspect_router"},
                       {"version", 1},
                       {"group_at", inspection.settings().group_at}};
  json["layers"] = detail::Json::array();
  for (const LayerReport& layer : inspection.layers()) {
    json["layers"].push_back(detail::json_of(layer));
  }
  // A file's name or a tensor's need not be UTF-8.
  return json.dump(1, ' ', false, detail::Json::error_handler_t::replace) + "\n";
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_JSON_REPORT_HPP
