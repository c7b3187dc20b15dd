// SPDX-License-Identifier: MIT
// Trains a byte-level mixture-of-experts model whose experts are spread over MPI ranks, with and
// without competition: loads, bytes and times.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "default_text.hpp"
#include "fingerprint.hpp"
#include "parallel_settings.hpp"
#include "parallel_training.hpp"
#include "report.hpp"

namespace expert_parallel {
namespace {

enum ExitCode { finished = 0, failed = 1, bad_input = 2 };

/// One line, whoever wrote the message.
void complain(std::string message) {
  for (char& c : message) c = c == '\n' ? ' ' : c;
  std::fprintf(stderr, "expert_parallel: %s\n", message.c_str());
}

/// What the job is given: everything that all ranks must agree on before they start.
struct Job {
  Settings settings;
  Shares shares;
  train_moe::Text text;
};

class Comparison {
 public:
  Comparison(const Job& job, const Communicator& comm)
      : job_(job), comm_(comm), executor_(train_moe::make_executor(job.settings.threads)) {}

  void run() {
    for (const train_moe::Arm& arm : job_.settings.arms) train(arm);
    if (comm_.rank() == 0) print_table(summaries_);
  }

 private:
  void train(const train_moe::Arm& arm) {
    const Settings& s = job_.settings;
    Ledger ledger;
    train_moe::Sizes sizes = s.sizes;
    sizes.tokens = job_.shares.count(comm_.rank());
    train_moe::Routing routing = train_moe::refreshed(arm.routing, s.refresh_every);
    routing.config.bias.enabled = s.bias_rate > 0 && !routing.config.quantile.enabled;
    routing.config.bias.update_rate = s.bias_rate;
    ParallelModel<float> model(sizes, {routing, comm_, ledger}, static_cast<std::uint64_t>(s.seed),
                               executor_);
    train_moe::Adam<float> adam(model.parameters());
    ledger = Ledger();
    Summary summary;
    summary.arm = arm.name;
    std::int64_t rows = 0;
    for (std::int64_t step = 1; step <= s.steps; ++step) {
      const train_moe::Batch part = batch(step);
      Losses losses;
      ledger.time(Part::step, [&] {
        losses = learn(model, part, step, ledger);
        adam.step(train_moe::learning_rate(s.learning_rate, step, s.steps), executor_);
        end_step(model, step, executor_);
      });
      ledger.end_step();
      for (const ParallelLayer<float>& layer : model.layers()) rows += layer.rows();
      summary.last_loss = losses.text;
      if (step == 1) summary.first_loss = losses.text;
      if (step == 1) print_first_step(arm.name, model, losses);
    }
    summarise(comm_, ledger, rows, s.steps, summary);
    if (comm_.rank() == 0) print_loads(summary);
    summaries_.push_back(summary);
  }

  /// This rank's tokens: each draws the whole batch, so that the tokens are those of one process.
  train_moe::Batch batch(std::int64_t step) const {
    const Settings& s = job_.settings;
    return job_.shares.part(
        job_.text.training_batch(static_cast<std::uint64_t>(s.seed),
                                 static_cast<std::uint64_t>(step), s.sizes.tokens, s.sizes.context),
        comm_.rank());
  }

  Losses learn(ParallelModel<float>& model, const train_moe::Batch& part, std::int64_t step,
               Ledger& ledger) const {
    if (comm_.rank() == job_.settings.fail_on_rank) {
      throw std::runtime_error("failed in step " + std::to_string(step) +
                               ", as --fail-on-rank says");
    }
    model.forward(part);
    const Losses losses = sum_losses(model, job_.shares.tokens(), comm_);
    backward(model, part, job_.shares.tokens(), comm_, ledger);
    return losses;
  }

  /// The same for any number of ranks, to the bit.
  void print_first_step(const std::string& arm, ParallelModel<float>& model,
                        const Losses& losses) const {
    const std::uint64_t routing =
        routing_fingerprint(model, job_.shares.begin(comm_.rank()), comm_);
    if (comm_.rank() != 0) return;
    std::printf("%s, step 1: ids and weights %016" PRIx64 ", bias %016" PRIx64
                ", loss %a, balance loss %a\n",
                arm.c_str(), routing, bias_fingerprint(model), losses.text, losses.balance);
  }

  void print_loads(const Summary& summary) const {
    const Index each = job_.settings.sizes.experts / comm_.size();
    const int shown = std::min(comm_.size(), 16);
    for (int rank = 0; rank < shown; ++rank) {
      const auto rows = static_cast<double>(summary.rows_R[static_cast<std::size_t>(rank)]);
      std::printf("%s, rank %d: %lld tokens, experts %lld to %lld, %.1f rows per step\n",
                  summary.arm.c_str(), rank, static_cast<long long>(job_.shares.count(rank)),
                  static_cast<long long>(rank * each),
                  static_cast<long long>((rank + 1) * each - 1),
                  rows / static_cast<double>(job_.settings.steps));
    }
    if (shown < comm_.size()) std::printf("and so on, to rank %d\n", comm_.size() - 1);
  }

  const Job& job_;
  const Communicator& comm_;
  train_moe::Executor executor_;
  std::vector<Summary> summaries_;
};

/// The ranks check together what they were given; then one that throws ends the job.
int run(int argc, char** argv, const Communicator& comm) {
  Settings settings;
  CLI::App app("Trains a mixture of experts that are spread over the ranks of an MPI job.");
  add_options(app, settings);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {  // the same on all ranks
    if (error.get_exit_code() == 0) return comm.rank() == 0 ? app.exit(error) : finished;
    if (comm.rank() == 0) complain(std::string(error.what()) + " (see --help)");
    return bad_input;
  }
  try {
    std::string bytes;
    comm.together([&] {
      check_settings(settings, comm.size());
      if (comm.rank() == 0) bytes = train_moe::load_bytes(settings.text);
    });
    const auto shares = [&] {
      return settings.shares.empty() ? Shares(settings.sizes.tokens, comm.size())
                                     : Shares(settings.shares, settings.sizes.tokens, comm.size());
    };
    comm.together([&] { shares(); });
    bytes = comm.broadcast(std::move(bytes));
    comm.together([&] { train_moe::Text{bytes}; });
    const Job job{settings, shares(), train_moe::Text(std::move(bytes))};
    Comparison(job, comm).run();
    return finished;
  } catch (const train_moe::UserError& error) {
    if (*error.what() != '\0') complain(error.what());
    return bad_input;
  }
}

}  // namespace
}  // namespace expert_parallel

int main(int argc, char** argv) {
  int given = 0;  // threads of the executor never call MPI
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &given);
  const expert_parallel::Communicator comm(MPI_COMM_WORLD);
  int code = 0;
  try {
    code = expert_parallel::run(argc, argv, comm);
  } catch (const std::exception& error) {
    // The others wait for this rank in some exchange: only the end of the job frees them.
    std::fprintf(stderr, "expert_parallel: rank %d: %s\n", comm.rank(), error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return code;
}
