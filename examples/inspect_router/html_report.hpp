// SPDX-License-Identifier: MIT
// The page: an overview, then the pictures of each layer.
#ifndef INSPECT_ROUTER_HTML_REPORT_HPP
#define INSPECT_ROUTER_HTML_REPORT_HPP

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "inspection.hpp"
#include "pictures.hpp"
#include "support/page.hpp"

namespace inspect_router {

using report::fixed;
using report::number;
using report::Page;
using report::percent;

/// Where the colours of all similarity maps end, so that layers can be compared.
inline double similarity_limit(const std::vector<LayerReport>& layers) {
  double largest = 0.05;
  for (const LayerReport& layer : layers) {
    if (!layer.likeness) continue;
    largest = std::max({largest, std::abs(layer.likeness->pairs.smallest),
                        std::abs(layer.likeness->pairs.largest)});
  }
  return std::min(1.0, report::round_up(largest));
}

namespace detail {

inline std::string count_of(Index count, const std::string& one, const std::string& many) {
  return std::to_string(count) + " " + (count == 1 ? one : many);
}

inline std::vector<std::pair<std::string, std::string>> tiles(const LayerReport& layer) {
  std::vector<std::pair<std::string, std::string>> tiles;
  if (layer.likeness) {
    const Likeness& like = *layer.likeness;
    tiles = {
        {fixed(like.partners.mean, 3), "mean cosine with the partner; random routers " +
                                           fixed(layer.random->mean_with_partner, 3)},
        {fixed(like.pairs.mean, 3),
         "mean cosine of all pairs, ± " + fixed(like.pairs.deviation, 3)},
        {fixed(like.pairs.largest, 3),
         "largest cosine; random routers " + fixed(layer.random->largest, 3)},
        {fixed(layer.spectral_entropy, 2),
         "nats of spectral entropy; a random router " + fixed(layer.random->spectral_entropy, 2)},
        {std::to_string(like.graph.mutual_pairs),
         like.graph.mutual_pairs == 1 ? "pair that name each other" : "pairs that name each other"},
        {std::to_string(like.graph.largest_in_degree),
         "experts name the hub, expert " + std::to_string(like.graph.hub)},
        {std::to_string(layer.groups.size()),
         layer.groups.size() == 1 ? "redundant group" : "redundant groups"}};
  }
  if (!layer.routing) return tiles;
  const RoutingSummary& routing = *layer.routing;
  tiles.insert(
      tiles.end(),
      {{std::to_string(routing.loads.zero_token_experts), "experts without a token"},
       {fixed(routing.loads.max_violation, 2), "MaxVio: largest load over the mean, less 1"},
       {fixed(routing.loads.normalised_entropy, 3), "entropy of the loads; 1 is even"}});
  if (!routing.weight_E.empty()) {
    tiles.push_back({fixed(routing.mean_largest_weight, 3), "mean of a token's largest weight"});
  }
  if (layer.likeness) {
    tiles.push_back({fixed(routing.partner_lift, 2), "lift of partners; 1 is chance"});
  }
  if (routing.margins) {
    tiles.push_back({percent(routing.margins->largest_share()),
                     "of the tokens would change experts if losers were eliminated"});
  }
  return tiles;
}

inline std::string similarity_caption(const LayerReport& layer) {
  std::string text =
      "Each row and column is an expert; blue pairs point the same way, orange ones apart. Experts "
      "stand in the order of clusters, so a blue block on the diagonal is a set of experts that "
      "the "
      "router can hardly tell apart. ";
  if (!layer.groups.empty()) {
    text += "Frames are the redundant groups of the table below. ";
  } else {
    text += "No group reaches the mean cosine that counts as redundant. ";
  }
  return text + "The diagonal is left blank.";
}

inline std::string partner_caption(const LayerReport& layer) {
  const gatepro::PartnerGraph& graph = layer.likeness->graph;
  return "An arrow leads from an expert to its partner, the most similar other one, against which "
         "it competes under GatePro. Thick lines are pairs that name each other (" +
         std::to_string(graph.mutual_pairs) + "). Nobody names " +
         count_of(graph.unnamed_experts, "expert", "experts") + ", and " +
         count_of(graph.largest_in_degree, "expert names", "experts name") + " expert " +
         std::to_string(graph.hub) + "." +
         (layer.groups.empty() ? "" : " Orange rings: redundant groups.");
}

inline std::string histogram_caption(const LayerReport& layer) {
  const double own = layer.likeness->partners.mean, chance = layer.random->mean_with_partner;
  std::size_t beyond = 0;
  for (const double cosine : layer.likeness->with_partner_E) {
    beyond += cosine > layer.random->largest ? 1 : 0;
  }
  return "Bars: this router's experts. Line: " + std::to_string(RandomRouters::draws) +
         " random routers of " + std::to_string(layer.experts) + " x " +
         std::to_string(layer.hidden) + ", per router. The mean is " + fixed(own, 3) + " against " +
         fixed(chance, 3) + "; " + std::to_string(beyond) + " of " + std::to_string(layer.experts) +
         " experts are closer to their partner than any expert of the random routers (" +
         fixed(layer.random->largest, 3) + ").";
}

inline std::string load_caption(const LayerReport& layer) {
  const RoutingSummary& routing = *layer.routing;
  return "Tokens that selected each expert, " + routing.source + ": " +
         std::to_string(routing.tokens) + " tokens, " + std::to_string(routing.top_k) +
         " experts each. " + std::to_string(routing.loads.zero_token_experts) +
         " experts got none; Gini " + fixed(routing.loads.gini, 3) + ".";
}

inline std::string lambda_caption(const LayerReport& layer) {
  const gatepro::MarginCounts& margins = *layer.routing->margins;
  std::string text =
      "Tokens whose experts the penalty λ would change. The published λ, 1e-4, "
      "changes " +
      percent(margins.changed_share(1e-4), 2) + ", elimination " +
      percent(margins.largest_share()) + ".";
  for (const double share : {0.01, 0.1}) {
    const double lambda = margins.lambda_for_share(share);
    if (!std::isfinite(lambda)) continue;
    text += " λ = " + number(lambda, 2) + " changes " + percent(share, 0) + ".";
  }
  return text + " Half of the tokens have less than " + number(margins.margin(0.5), 2) +
         " between the logits of the last expert that is selected and the next one.";
}

inline std::vector<std::string> group_columns(const LayerReport& layer) {
  std::vector<std::string> columns{"group", "|experts", "size", "mean cosine"};
  if (layer.routing) columns.insert(columns.end(), {"share of the load", "lift inside"});
  return columns;
}

inline std::vector<std::vector<std::string>> group_rows(const LayerReport& layer) {
  std::vector<std::vector<std::string>> rows;
  for (std::size_t g = 0; g < layer.groups.size(); ++g) {
    const RedundantGroup& group = layer.groups[g];
    rows.push_back({group_name(g), list_of(group.experts), std::to_string(group.experts.size()),
                    fixed(group.similarity, 3)});
    if (layer.routing) {
      rows.back().insert(rows.back().end(), {percent(group.load_share), fixed(group.lift, 2)});
    }
  }
  return rows;
}

inline void add_groups(Page& page, const LayerReport& layer, double group_at) {
  page.begin_card("Redundant groups");
  page.paragraph("Clusters whose parts have a mean cosine of at least " +
                 report::coordinate(group_at) + " (--group-at)" +
                 (layer.groups.empty() ? ": there is none." : "."));
  if (!layer.groups.empty()) page.table(group_columns(layer), group_rows(layer));
  page.end_card();
}

inline void add_layer(Page& page, const LayerReport& layer, bool single, double limit,
                      double group_at) {
  page.section(single ? "The router" : layer.label, layer.id);
  std::string shape = std::to_string(layer.experts) + " experts";
  if (layer.hidden > 0) shape += ", " + std::to_string(layer.hidden) + " wide";
  page.lead(shape + (layer.routing ? "; tokens " + layer.routing->source : "") + ".");
  page.tiles(tiles(layer));
  if (layer.likeness) {
    page.begin_cards();
    page.begin_stack(Page::Width::wide);
    page.figure("Similarity", similarity_map(layer, limit), similarity_caption(layer));
    add_groups(page, layer, group_at);
    page.end_stack();
    page.begin_stack();
    page.figure("Partners", partner_picture(layer), partner_caption(layer));
    page.figure("Similarity to the partner", partner_histogram(layer), histogram_caption(layer));
    page.end_stack();
    page.end_cards();
  }
  if (layer.routing) {
    page.begin_cards();
    page.figure("Co-activation", lift_map(layer),
                "How often two experts are selected for the same token, against what their loads "
                "alone would give: blue more often, orange less. Rare pairs are "
                "pulled towards chance, as by " +
                    number(lift_prior, 1) + " tokens more. The order is the same as above.",
                Page::Width::wide);
    page.begin_stack();
    page.figure("Loads", load_picture(layer), load_caption(layer));
    if (layer.likeness) {
      page.figure("Do similar experts take the same tokens?", lift_by_similarity(layer),
                  "Pairs of experts in up to 20 parts of equal number, by their cosine. Above the "
                  "line of chance, similar experts are selected together, which is what the "
                  "competition is to prevent.");
    }
    if (layer.routing->margins) {
      page.figure("What would a penalty change?", lambda_picture(layer), lambda_caption(layer));
    }
    page.end_stack();
    page.end_cards();
  }
}

inline void add_curves(Page& page, const std::vector<LayerReport>& layers) {
  report::Points partner, chance, pairs;
  double low = 0, high = 0.05;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    if (!layers[l].likeness) continue;
    const auto at = static_cast<double>(l);
    partner.emplace_back(at, layers[l].likeness->partners.mean);
    pairs.emplace_back(at, layers[l].likeness->pairs.mean);
    chance.emplace_back(at, layers[l].random->mean_with_partner);
    low = std::min(low, pairs.back().second);
    high = std::max({high, partner.back().second, chance.back().second});
  }
  if (partner.size() < 2) return;
  const auto last = static_cast<double>(layers.size() - 1);
  Plot plot("Similarity over the layers",
            {"layer, in the order of the table", 0, last, false, report::whole_ticks(0, last)},
            {"cosine", low, 1.1 * high}, picture_width, 160);
  plot.line(chance, 1, true);
  plot.line(pairs, 2);
  plot.line(partner, 0);
  for (const auto& [x, y] : partner) {
    plot.point(x, y, 0, layers[static_cast<std::size_t>(x)].label + ": " + number(y));
  }
  plot.legend({{0, "partner"}, {1, "partner, random router"}, {2, "all pairs"}});
  page.begin_cards();
  page.figure(
      "Similarity over the layers", plot.svg(),
      "Mean cosine of each expert with its partner, and of all pairs. Above the dashed line "
      "is more than a random router of the same shape has.",
      Page::Width::wide);
  page.end_cards();
}

inline void add_overview(Page& page, const std::vector<LayerReport>& layers) {
  if (layers.size() < 2) return;
  page.section("All layers", "layers");
  add_curves(page, layers);
  std::vector<std::vector<std::string>> rows;
  for (const LayerReport& layer : layers) {
    std::vector<std::string> row{"#" + layer.id + "|" + layer.label, std::to_string(layer.experts)};
    const auto add = [&](bool given, const std::string& text) {
      row.push_back(given ? text : "–");
    };
    const bool like = layer.likeness.has_value(), routed = layer.routing.has_value();
    add(like, like ? fixed(layer.likeness->partners.mean, 3) : "");
    add(like, like ? fixed(layer.random->mean_with_partner, 3) : "");
    add(like, like ? fixed(layer.likeness->pairs.mean, 3) : "");
    add(like, like ? std::to_string(layer.likeness->graph.mutual_pairs) : "");
    add(like, like ? std::to_string(layer.groups.size()) : "");
    add(routed, routed ? std::to_string(layer.routing->loads.zero_token_experts) : "");
    add(routed, routed ? fixed(layer.routing->loads.max_violation, 2) : "");
    add(like && routed, routed ? fixed(layer.routing->partner_lift, 2) : "");
    rows.push_back(row);
  }
  page.table({"|layer", "experts", "cosine with the partner", "random router", "all pairs",
              "mutual pairs", "redundant groups", "without a token", "MaxVio", "partner lift"},
             rows);
}

}  // namespace detail

/// The whole page.
inline std::string html_report(const Inspection& inspection) {
  const std::vector<LayerReport>& layers = inspection.layers();
  Page page(layers.size() == 1 ? "Router: " + layers.front().label
                               : "Routers of " + std::to_string(layers.size()) + " layers");
  page.add_css(picture_css(report::light_theme), picture_css(report::dark_theme));
  page.lead(
      "What the rows of the router's weights say of its experts: which are alike, whom each would "
      "compete with under GatePro, and, where tokens were given, who is selected with whom.");
  detail::add_overview(page, layers);
  const double limit = similarity_limit(layers);
  for (const LayerReport& layer : layers) {
    detail::add_layer(page, layer, layers.size() == 1, limit, inspection.settings().group_at);
  }
  return page.html();
}

/// All pictures of a layer on one sheet.
inline std::string sheet(const LayerReport& layer, double limit) {
  struct Titled {
    std::string title;
    Svg svg;
  };
  std::vector<Titled> pictures;
  if (layer.likeness) {
    pictures.push_back({"Similarity", similarity_map(layer, limit)});
    pictures.push_back({"Partners", partner_picture(layer)});
    pictures.push_back({"Similarity to the partner", partner_histogram(layer)});
  }
  if (layer.routing) {
    pictures.push_back({"Loads", load_picture(layer)});
    pictures.push_back({"Co-activation", lift_map(layer)});
    if (layer.likeness) {
      pictures.push_back({"Lift by similarity", lift_by_similarity(layer)});
    }
    if (layer.routing->margins) {
      pictures.push_back({"What a penalty changes", lambda_picture(layer)});
    }
  }
  constexpr double gap = 24, head = 28;
  double height = 44;
  for (std::size_t p = 0; p < pictures.size(); p += 2) {
    const double other = p + 1 < pictures.size() ? pictures[p + 1].svg.height() : 0;
    height += head + std::max(pictures[p].svg.height(), other) + gap;
  }
  Svg svg(2 * picture_width + 3 * gap, height, "Router " + layer.label);
  svg.text(gap, 30, layer.label, "ink strong", "start", 17);
  double y = 44;
  for (std::size_t p = 0; p < pictures.size(); p += 2) {
    double row = 0;
    for (std::size_t c = 0; c < 2 && p + c < pictures.size(); ++c) {
      const double x = gap + static_cast<double>(c) * (picture_width + gap);
      svg.text(x, y + 18, pictures[p + c].title, "ink strong", "start", 14);
      svg.drawing(x, y + head, pictures[p + c].svg);
      row = std::max(row, pictures[p + c].svg.height());
    }
    y += head + row + gap;
  }
  return svg.file_text(report::drawing_css() + picture_css(report::light_theme));
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_HTML_REPORT_HPP
