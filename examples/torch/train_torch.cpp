// SPDX-License-Identifier: MIT
// Trains a small mixture-of-experts transformer on text, with the operators of ops.hpp.
#include <torch/torch.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "default_text.hpp"
#include "model.hpp"
#include "support/command_line.hpp"

namespace train_torch {
namespace {

using train_moe::Text;
using train_moe::UserError;

struct Settings {
  std::string text;  // empty: the Eigen headers
  std::string mode = "eliminate";
  double lambda = 1e-4;
  std::int64_t on_at = 0;  // the first step with competition
  std::int64_t steps = 100;
  std::int64_t refresh_every = 1;
  std::int64_t print_every = 20;
  std::int64_t seed = 1;
  double learning_rate = 3e-3;
  double balance_coefficient = 1e-2;
  int threads = 1;
  std::string save, load;
};

void add_options(CLI::App& app, Settings& s) {
  app.option_defaults()->always_capture_default()->take_last();
  const auto count = [](std::int64_t low) { return CLI::Range(low, std::int64_t{1000000000}); };
  app.add_option("--text", s.text, "File or folder to learn from [the Eigen headers]");
  app.add_option("--mode", s.mode, "Competition: off, penalty or eliminate")
      ->check(CLI::IsMember({"off", "penalty", "eliminate"}));
  app.add_option("--lambda", s.lambda, "What losers pay with --mode penalty")
      ->check(CLI::Range(0.0, 1e30));
  app.add_option("--on-at", s.on_at, "Step at which competition is switched on")->check(count(0));
  app.add_option("--steps", s.steps, "Optimizer steps, those before --load included")
      ->check(count(1));
  app.add_option("--refresh-every", s.refresh_every, "Steps between two choices of partners")
      ->check(count(1));
  app.add_option("--print-every", s.print_every, "Steps between two lines")->check(count(1));
  app.add_option("--seed", s.seed, "Of parameters and batches")->check(count(0));
  app.add_option("--learning-rate", s.learning_rate, "AdamW's")->check(CLI::Range(1e-12, 10.0));
  app.add_option("--balance-coeff", s.balance_coefficient, "Weight of the balance loss")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--threads", s.threads, "LibTorch's threads")->check(CLI::Range(1, 1024));
  app.add_option("--save", s.save, "File for the state after the last step");
  app.add_option("--load", s.load, "File to go on from");
}

/// B sequences and, for each of their bytes, the next one.
struct Sequences {
  Tensor context, next;
};
Sequences sequences(const train_moe::Batch& batch) {
  const std::int64_t rows = batch.context_TC.rows(), cols = batch.context_TC.cols();
  const Tensor all = torch::empty({rows, cols + 1}, torch::kLong);
  auto element = all.accessor<std::int64_t, 2>();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) element[r][c] = batch.context_TC(r, c);
    element[r][cols] = batch.target_T[static_cast<std::size_t>(r)];
  }
  return {all.narrow(1, 0, cols), all.narrow(1, 1, cols)};
}

/// The first line of what torch says.
std::string first_line(const c10::Error& error) {
  const std::string text = error.what_without_backtrace();
  return text.substr(0, text.find('\n'));
}

class Training {
 public:
  Training(const Settings& settings, const Text& text)
      : settings_(settings),
        text_(text),
        model_(sizes_),
        optimizer_(model_.parameters(), torch::optim::AdamWOptions(settings.learning_rate)) {
    if (!settings.load.empty()) load(settings.load);
  }

  void run() {
    while (step_ < settings_.steps) {
      switch_competition(settings_.mode != "off" && step_ >= settings_.on_at);
      const double loss = step();
      if (step_ % settings_.print_every == 0 || step_ == settings_.steps) print(loss);
    }
    if (!settings_.save.empty()) save(settings_.save);
  }

 private:
  void switch_competition(bool on) {
    competes_ = on;
    const bool eliminate = on && settings_.mode == "eliminate";
    const double penalty = on ? settings_.lambda : 0;
    model_.for_each_moe([&](MixtureOfExperts& moe) { moe.set_competition(penalty, eliminate); });
  }

  double step() {
    const auto seed = static_cast<std::uint64_t>(settings_.seed);
    const auto [context, next] = sequences(text_.training_batch(
        seed, static_cast<std::uint64_t>(step_), sizes_.batch, sizes_.context));
    optimizer_.zero_grad();
    const Prediction prediction = model_.forward(context);
    const Tensor loss = loss_of(prediction, next);
    (loss + settings_.balance_coefficient * prediction.balance_loss).backward();
    optimizer_.step();
    ++step_;
    if (step_ % settings_.refresh_every == 0) {
      model_.for_each_moe([](MixtureOfExperts& moe) { moe.refresh(); });
    }
    return loss.item<double>();
  }

  static Tensor loss_of(const Prediction& prediction, const Tensor& next) {
    return torch::nn::functional::cross_entropy(prediction.logits.flatten(0, 1), next.flatten());
  }

  void print(double loss) {
    const torch::NoGradGuard no_graph;
    const auto [context, next] =
        sequences(text_.validation_batch(4 * sizes_.batch, sizes_.context));
    const double validation = loss_of(model_.forward(context), next).item<double>();
    std::int64_t idle = 0;
    double together = 0;
    model_.for_each_moe([&](MixtureOfExperts& moe) {
      idle += (moe.routed().tokens_per_expert == 0).sum().item<std::int64_t>();
      together += moe.routed().together / static_cast<double>(sizes_.layers);
    });
    std::printf(
        "step %4lld  loss %.4f  validation %.6f  idle experts %2lld of %lld  partners chosen "
        "together %.3f  competition %s\n",
        static_cast<long long>(step_), loss, validation, static_cast<long long>(idle),
        static_cast<long long>(sizes_.layers * sizes_.experts), together,
        competes_ ? settings_.mode.c_str() : "off");
    std::fflush(stdout);
  }

  /// Parameters, partners, what AdamW keeps, and the step.
  void save(const std::string& path) {
    torch::serialize::OutputArchive archive, of_optimizer;
    model_.save(archive);
    optimizer_.save(of_optimizer);
    archive.write("optimizer", of_optimizer);
    archive.write("step", torch::tensor(step_));
    try {
      archive.save_to(path);
    } catch (const c10::Error& error) {
      throw UserError("cannot save " + path + ": " + first_line(error));
    }
  }

  void load(const std::string& path) {
    if (!std::filesystem::exists(path)) throw UserError("there is no file " + path + " to load");
    try {
      torch::serialize::InputArchive archive, of_optimizer;
      archive.load_from(path);
      model_.load(archive);
      archive.read("optimizer", of_optimizer);
      optimizer_.load(of_optimizer);
      Tensor step;
      archive.read("step", step);
      step_ = step.item<std::int64_t>();
    } catch (const c10::Error& error) {
      throw UserError("cannot load " + path + ": " + first_line(error));
    }
  }

  const Settings& settings_;
  const Text& text_;
  Sizes sizes_;
  Model model_;
  torch::optim::AdamW optimizer_;
  std::int64_t step_ = 0;
  bool competes_ = false;
};

/// What one option alone cannot tell.
void check_settings(const Settings& settings) {
  for (const double value :
       {settings.lambda, settings.learning_rate, settings.balance_coefficient}) {
    if (std::isnan(value)) throw UserError("an option is nan: give a number");  // CLI11 takes it
  }
}

int run(int argc, char** argv) {
  Settings settings;
  CLI::App app("Trains a byte-level mixture-of-experts transformer with LibTorch.");
  add_options(app, settings);
  return report::run_program("train_torch", "not enough memory: choose smaller sizes", app, argc,
                             argv, [&] {
                               check_settings(settings);
                               try {
                                 torch::set_num_threads(settings.threads);
                                 torch::manual_seed(static_cast<std::uint64_t>(settings.seed));
                                 const Text text = train_moe::load_text(settings.text);
                                 Training(settings, text).run();
                               } catch (const c10::Error& error) {
                                 throw std::runtime_error(first_line(error));
                               }
                               return report::finished;
                             });
}

}  // namespace
}  // namespace train_torch

int main(int argc, char** argv) { return train_torch::run(argc, argv); }
