// SPDX-License-Identifier: MIT
// One run: an arm and a seed, step by step.
#ifndef TRAIN_MOE_TRAINING_HPP
#define TRAIN_MOE_TRAINING_HPP

#include <chrono>
#include <cmath>
#include <string>
#include <vector>

#include "adam.hpp"
#include "layer_metrics.hpp"
#include "model.hpp"
#include "settings.hpp"
#include "trace.hpp"

namespace train_moe {

/// One step of one run.
struct StepRecord {
  std::string arm;
  std::int64_t seed = 0;
  std::int64_t step = 0;
  double loss = 0;
  double validation_loss = std::nan("");                           // NaN: not measured at this step
  double tokens_per_second = 0;                                    // without validation and metrics
  gatepro::Competition competition = gatepro::Competition::off();  // of the first layer
  std::vector<LayerMetrics> layers;
};

/// The mean loss over a batch of any size, in parts that the model's buffers hold. Nothing learns.
template <class A>
double mean_loss(Model<A>& model, const Batch& batch, Index tokens_at_once) {
  double sum = 0;
  const Index tokens = batch.context_TC.rows();
  for (Index first = 0; first < tokens; first += tokens_at_once) {
    const Index count = std::min(tokens_at_once, tokens - first);
    const auto begin = batch.target_T.begin() + first;
    const Batch part{batch.context_TC.middleRows(first, count), {begin, begin + count}};
    sum += static_cast<double>(count) * model.forward(part, gatepro::Pass::evaluation);
  }
  return sum / static_cast<double>(tokens);
}

template <class A>
class Training {
 public:
  /// `settings` and `text` must outlive the run.
  Training(const Settings& settings, const Arm& arm, std::int64_t seed, const Text& text)
      : settings_(settings),
        arm_(arm),
        seed_(static_cast<std::uint64_t>(seed)),
        text_(text),
        executor_(make_executor(settings.threads)),
        model_(settings.sizes, refreshed(arm.routing, settings.refresh_every), seed_, executor_),
        adam_(model_.parameters()),
        observer_(settings.sizes, executor_),
        trace_(settings, arm.name, seed),
        validation_(text.validation_batch(settings.validation_tokens, settings.sizes.context,
                                          settings.sizes.window)) {}

  bool done() const { return step_ == settings_.steps; }
  Model<A>& model() { return model_; }
  const Executor& executor() const { return executor_; }

  /// Learns from one batch.
  StepRecord step() {
    ++step_;
    StepRecord record;
    record.arm = arm_.name;
    record.seed = static_cast<std::int64_t>(seed_);
    record.step = step_;

    const Swaps& own = arm_.routing.swaps;
    const bool has_own = own.on_at > 0 || own.off_at > 0;
    const bool competes = competes_at(has_own ? own : settings_.swaps, step_);
    model_.set_competition(competes ? arm_.routing.config.competition
                                    : gatepro::Competition::off());
    const Batch batch =
        text_.training_batch(seed_, static_cast<std::uint64_t>(step_), settings_.sizes.tokens,
                             settings_.sizes.context, settings_.sizes.window);
    Stopwatch stopwatch;
    record.loss = model_.forward(batch);
    stopwatch.pause();
    record.competition = model_.layers().front().routed().report().competition;
    for (MoeLayer<A>& layer : model_.layers()) {
      record.layers.push_back(observer_.observe(layer, step_, executor_));
    }
    trace_.write(step_, model_.layers());
    stopwatch.resume();
    model_.backward(batch);
    adam_.step(learning_rate(settings_.learning_rate, step_, settings_.steps), executor_);
    end_step(record);
    stopwatch.pause();
    record.tokens_per_second = static_cast<double>(settings_.sizes.tokens) / stopwatch.seconds();

    // The competition stays as it is: taking the penalty away would be a mismatch with training.
    if (step_ % settings_.eval_every == 0 || done()) {
      record.validation_loss = mean_loss(model_, validation_, settings_.sizes.tokens);
    }
    return record;
  }

 private:
  class Stopwatch {
   public:
    void pause() { seconds_ += std::chrono::duration<double>(Clock::now() - since_).count(); }
    void resume() { since_ = Clock::now(); }
    double seconds() const { return seconds_; }

   private:
    using Clock = std::chrono::steady_clock;
    Clock::time_point since_ = Clock::now();
    double seconds_ = 0;
  };

  /// What follows the optimizer: biases move, partners follow the router weights.
  void end_step(StepRecord& record) {
    for (std::size_t l = 0; l < record.layers.size(); ++l) {
      MoeLayer<A>& layer = model_.layers()[l];
      layer.end_step();
      if (layer.refresh(step_, executor_)) {
        record.layers[l].partners_changed = layer.router().similarity_cache().partners_changed();
      }
    }
  }

  const Settings& settings_;
  const Arm arm_;
  const std::uint64_t seed_;
  const Text& text_;
  Executor executor_;
  Model<A> model_;
  Adam<A> adam_;
  LayerObserver<A> observer_;
  Trace trace_;
  Batch validation_;
  std::int64_t step_ = 0;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_TRAINING_HPP
