// SPDX-License-Identifier: MIT
#include "one_run.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <gatepro/metrics.hpp>
#include <gatepro/spectral_entropy.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "csv.hpp"
#include "history.hpp"
#include "output_similarity.hpp"
#include "settings.hpp"
#include "statistics.hpp"
#include "training.hpp"

namespace study {
namespace {

using train_moe::Index;
using train_moe::RowMatrix;

/// The settings that train_moe would have for these options and one arm.
train_moe::Settings settings_of(const std::string& options, const std::string& arm) {
  train_moe::Settings settings;
  CLI::App app;
  train_moe::add_options(app, settings);
  app.parse(options + " --arms " + arm);
  train_moe::check_settings(settings);
  return settings;
}

/// The cosines of a layer's router rows.
template <class A>
RowMatrix<A> row_cosines(train_moe::MoeLayer<A>& layer) {
  const RowMatrix<A> unit_EH = layer.gate().value.rowwise().normalized();
  return unit_EH * unit_EH.transpose();
}

/// What the experts of a layer, looked at one by one, say about its router.
struct OutputView {
  double correlation = 0, cosine = 0, partner = 0, agreement = 0;
};

/// Looks at a layer after its last forward.
template <class A>
OutputView view_outputs(train_moe::MoeLayer<A>& layer, const train_moe::Executor& executor) {
  constexpr Index sample = 128;
  const RowMatrix<A>& seen_TH = layer.input();
  const RowMatrix<A> outputs_EE = train_moe::output_similarity<A>(
      layer.experts().networks(), seen_TH.topRows(std::min(sample, seen_TH.rows())), executor);
  const RowMatrix<A> rows_EE = row_cosines(layer);
  const auto by_rows = train_moe::most_similar(rows_EE);
  const auto by_outputs = train_moe::most_similar(outputs_EE);

  OutputView view;
  std::vector<double> rows, outputs;
  const Index experts = rows_EE.rows();
  for (Index i = 0; i < experts; ++i) {
    for (Index j = 0; j < i; ++j) {
      rows.push_back(static_cast<double>(rows_EE(i, j)));
      outputs.push_back(static_cast<double>(outputs_EE(i, j)));
      view.cosine += outputs.back();
    }
    view.partner += static_cast<double>(outputs_EE(i, by_rows(i)));
    view.agreement += by_rows(i) == by_outputs(i) ? 1 : 0;
  }
  view.correlation = rank_correlation(rows, outputs);
  view.cosine /= static_cast<double>(outputs.size());
  view.partner /= static_cast<double>(experts);
  view.agreement /= static_cast<double>(experts);
  return view;
}

/// How its router rows are spread.
template <class A>
void view_rows(train_moe::MoeLayer<A>& layer, double share, RunSummary& summary) {
  const RowMatrix<A>& weights_EH = layer.gate().value;
  const RowMatrix<A> rows_EE = row_cosines(layer);
  const gatepro::MatrixView<const A> similarity_EE(rows_EE);
  summary[Metric::mean_angle] += share * gatepro::pairwise_similarity(similarity_EE).mean_degrees;
  summary[Metric::spectral_entropy] += share * gatepro::spectral_entropy(similarity_EE);
  summary[Metric::spectral_entropy_weights] +=
      share * gatepro::spectral_entropy(gatepro::MatrixView<const A>(weights_EH),
                                        gatepro::Spectrum::singular_values);
}

/// Mean over some steps, [first, end), and their layers, or one of these.
template <class Value>
double mean_over(const train_moe::Run& run, std::size_t first, std::size_t end,
                 Value train_moe::LayerMetrics::*value, Index layer = -1) {
  double sum = 0;
  for (std::size_t i = first; i < end; ++i) {
    const train_moe::StepRecord& step = run.steps[i];
    sum += layer < 0 ? mean_over_layers(step, value)
                     : static_cast<double>(step.layers[static_cast<std::size_t>(layer)].*value);
  }
  return sum / static_cast<double>(end - first);
}

/// The share of the steps after which at most 20 of 128 experts stay unused, in the mean of the
/// layers.
double used_step(const train_moe::Run& run, double experts) {
  std::size_t used = run.steps.size();
  for (; used > 0; --used) {
    const double unused =
        mean_over_layers(run.steps[used - 1], &train_moe::LayerMetrics::zero_token_experts);
    if (unused > experts * 20 / 128) break;
  }
  return static_cast<double>(used) / static_cast<double>(run.steps.size());
}

/// The metrics that follow from the steps.
void sum_up(const train_moe::Run& run, const train_moe::Sizes& sizes, RunSummary& summary) {
  using train_moe::LayerMetrics;
  const std::size_t steps = run.steps.size(), quarter = steps * 3 / 4;
  const auto at_end = [&](auto value, Index layer = -1) {
    return mean_over(run, quarter, steps, value, layer);
  };
  const double experts = static_cast<double>(sizes.experts);
  const auto zero = &LayerMetrics::zero_token_experts;
  summary[Metric::val_loss] = run.steps.back().validation_loss;
  double loss = 0;
  for (std::size_t i = quarter; i < steps; ++i) loss += run.steps[i].loss;
  summary[Metric::train_loss] = loss / static_cast<double>(steps - quarter);
  summary[Metric::unused_early] = mean_over(run, 0, (steps + 1) / 2, zero) / experts;
  summary[Metric::unused] = at_end(zero) / experts;
  summary[Metric::unused_first_layer] = at_end(zero, 0) / experts;
  summary[Metric::unused_last_layer] = at_end(zero, sizes.layers - 1) / experts;
  summary[Metric::unused_depth] =
      summary[Metric::unused_last_layer] - summary[Metric::unused_first_layer];
  summary[Metric::used_step] = used_step(run, experts);
  summary[Metric::max_violation] = at_end(&LayerMetrics::max_violation);
  summary[Metric::mean_cosine] = at_end(&LayerMetrics::mean_cosine);
  summary[Metric::partner_cosine] = at_end(&LayerMetrics::partner_cosine);
  summary[Metric::changed] = at_end(&LayerMetrics::changed);
  constexpr std::size_t early = 10;
  summary[Metric::changed_early] =
      mean_over(run, 0, std::min(early, steps), &LayerMetrics::changed);
  summary[Metric::coactivation] = at_end(&LayerMetrics::coactivation);
  summary[Metric::coactivation_free] = at_end(&LayerMetrics::coactivation_unpenalised);
  summary[Metric::partners_changed] = at_end(&LayerMetrics::partners_changed) / experts;
}

/// A layer's loads and pairs in its last forward.
template <class A>
void count_choices(train_moe::MoeLayer<A>& layer, double share, RunSummary& summary) {
  const auto loads_E = layer.routed().tokens_per_expert_E();
  std::vector<std::int64_t> sorted_E(static_cast<std::size_t>(loads_E.size));
  const gatepro::LoadMetrics loads = gatepro::load_metrics(loads_E, sorted_E);
  summary[Metric::gini] += share * loads.gini;
  summary[Metric::load_entropy] += share * loads.normalised_entropy;
  gatepro::Coactivation pairs(loads_E.size);
  pairs.add(gatepro::Choices{layer.routed().expert_ids_TK()});
  const auto partner_E1 = train_moe::most_similar(row_cosines(layer));
  summary[Metric::lift] += share * pairs.partner_lift(partner_E1);
}

/// How far apart the k-th logit and the next are, over the tokens of the last forward.
template <class A>
void count_margins(train_moe::MoeLayer<A>& layer, gatepro::MarginCounts& counts) {
  const auto logits_TE = layer.routed().logits_TE();
  const Index top_k = layer.router().config().top_k;
  std::vector<std::byte> workspace(
      gatepro::count_margins_workspace_bytes<A>(logits_TE.cols, top_k));
  gatepro::count_margins(logits_TE, layer.router().similarity_cache().rivals(), {top_k}, {}, counts,
                         gatepro::Workspace(workspace));
}

/// The metrics that look at the trained model.
void examine(train_moe::Training<float>& training, const train_moe::Settings& settings,
             const train_moe::Text& text, RunSummary& summary) {
  train_moe::Model<float>& model = training.model();
  const double share = 1 / static_cast<double>(model.layers().size());
  for (auto& layer : model.layers()) count_choices(layer, share, summary);
  summary[Metric::excess_lift] = summary[Metric::lift] - 1;
  model.set_competition(gatepro::Competition::off());
  const train_moe::Batch validation = text.validation_batch(
      settings.validation_tokens, settings.sizes.context, settings.sizes.window);
  summary[Metric::val_loss_off] = mean_loss(model, validation, settings.sizes.tokens);
  summary[Metric::mismatch] = summary[Metric::val_loss_off] - summary[Metric::val_loss];
  gatepro::MarginCounts margins;
  for (auto& layer : model.layers()) {
    count_margins(layer, margins);
    const OutputView view = view_outputs(layer, training.executor());
    summary[Metric::output_correlation] += share * view.correlation;
    summary[Metric::output_cosine] += share * view.cosine;
    summary[Metric::output_partner] += share * view.partner;
    summary[Metric::output_agreement] += share * view.agreement;
    view_rows(layer, share, summary);
  }
  summary[Metric::output_excess] = summary[Metric::output_partner] - summary[Metric::output_cosine];
  summary[Metric::agreement_excess] =
      summary[Metric::output_agreement] - 1 / static_cast<double>(settings.sizes.experts - 1);
  summary[Metric::margin] = margins.margin(0.5);
  summary[Metric::lambda_one_percent] = margins.lambda_for_share(0.01);
}

/// Steps between two that steps.csv has.
constexpr std::int64_t log_every = 10;

}  // namespace

Cells steps_columns() {
  const std::string header = std::string("model,") + train_moe::csv_header();
  return cells_of(header.substr(0, header.find('\n')));
}

double cost_of(const RunKey& key) {
  const train_moe::Settings s = settings_of(options_of(key.model), key.arm);
  const double experts = static_cast<double>(s.sizes.experts) / 64;
  const double attention = s.sizes.window > 1 ? 0.4 : 0;
  const double layer = 0.3 + 0.12 * experts + attention;
  return static_cast<double>(s.steps) * (0.3 + static_cast<double>(s.sizes.layers) * layer);
}

bool train(const RunKey& key, const train_moe::Text& text, const std::function<bool()>& stop,
           RunResult& result) {
  const train_moe::Settings settings = settings_of(options_of(key.model), key.arm);
  train_moe::Training<float> training(settings, settings.arms.front(), key.seed, text);
  train_moe::Run run{key.arm, key.seed, {}};
  result.summary.key = key;
  result.summary.recipe = recipe_of(key);
  while (!training.done()) {
    run.steps.push_back(training.step());
    const train_moe::StepRecord& step = run.steps.back();
    if (step.step % log_every == 0 || training.done()) {
      std::string row;
      for (std::istringstream rows(csv_rows(step)); std::getline(rows, row);) {
        result.step_rows += key.model + ',' + row + '\n';
      }
    }
    if (!training.done() && stop()) return false;
  }
  sum_up(run, settings.sizes, result.summary);
  examine(training, settings, text, result.summary);
  return true;
}

}  // namespace study
