// SPDX-License-Identifier: MIT
// Forward and backward allocate nothing and start no thread: every way to do either is counted.
#include <gatepro/gatepro.hpp>
#include <gatepro/setup.hpp>

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>

#include "support/complete_data.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/routing_data.hpp"

namespace {

std::atomic<long> allocations{0};
std::atomic<long> threads{0};

void* counted(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), bytes) != 0) std::abort();
  return memory;
}

}  // namespace

#if defined(__GNUC__) && !defined(__clang__)
// What is deleted here comes from the operators here, which g++ forgets once it has inlined one.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif
// NOLINTBEGIN: replacements of the standard's functions
void* operator new(std::size_t bytes) { return counted(bytes, 0); }
void* operator new[](std::size_t bytes) { return counted(bytes, 0); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes, 0); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return counted(bytes, 0);
}
void* operator new(std::size_t bytes, std::align_val_t a) { return counted(bytes, std::size_t(a)); }
void* operator new[](std::size_t bytes, std::align_val_t a) {
  return counted(bytes, std::size_t(a));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
// NOLINTEND
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

// Sanitizers bring their own malloc and pthread_create.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TEST_HOOKS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TEST_HOOKS 0
#endif
#endif
#if !defined(TEST_HOOKS) && defined(__GLIBC__)
#define TEST_HOOKS 1
#elif !defined(TEST_HOOKS)
#define TEST_HOOKS 0
#endif

#if TEST_HOOKS
#include <pthread.h>

extern "C" {
void* __libc_malloc(std::size_t bytes);
void* __libc_calloc(std::size_t count, std::size_t bytes);
void* __libc_realloc(void* memory, std::size_t bytes);
void* __libc_memalign(std::size_t alignment, std::size_t bytes);

void* malloc(std::size_t bytes) noexcept {
  ++allocations;
  return __libc_malloc(bytes);
}
void* calloc(std::size_t count, std::size_t bytes) noexcept {
  ++allocations;
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, std::size_t bytes) noexcept {
  ++allocations;
  return __libc_realloc(memory, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) noexcept {
  ++allocations;
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  ++allocations;
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) noexcept {
  ++allocations;
  *memory = __libc_memalign(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}
// No thread is needed in this program: whoever asks for one is counted, and gets none.
int pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) noexcept {
  ++threads;
  return EAGAIN;
}
}
#endif  // TEST_HOOKS

namespace {

using data::random_matrix;
using gatepro::Competition;
using gatepro::Index;
using gatepro::RowMatrix;

/// Allocations and threads of `call`.
template <class Call>
long cost_of(const Call& call) {
  const long before = allocations + threads;
  call();
  return allocations + threads - before;
}

TEST(NoAllocation, TheCountersCount) {
  // Through volatile pointers: clang leaves out an allocation that nobody sees.
  EXPECT_GT(cost_of([] {
              int* volatile one = new int(1);
              delete one;
            }),
            0);
  EXPECT_GT(cost_of([] { std::vector<double> v(100); }), 0);
  struct alignas(128) Wide {
    char bytes[128];
  };
  EXPECT_GT(cost_of([] {
              Wide* volatile wide = new Wide();
              delete wide;
            }),
            0);
#if TEST_HOOKS
  EXPECT_GT(cost_of([] {
              void* volatile memory = std::malloc(10);
              std::free(memory);
            }),
            0);
  EXPECT_GT(cost_of([] { RowMatrix<float> m(3, 3); }), 0);
  EXPECT_GT(cost_of([] { EXPECT_THROW(std::thread([] {}), std::system_error); }), 0);
#endif
}

template <class X, class W>
void expect_no_cost() {
  using A = gatepro::accumulator_t<X, W>;
  constexpr Index tokens = 300, hidden = 530;
  for (const Index experts : {6, 40}) {
    const auto x = random_matrix<X>(tokens, hidden, 1);
    const auto w = random_matrix<W>(experts, hidden, 2);
    gatepro::RouterConfig config{hidden, experts, 3};
    config.pairing = {2, -1, true};
    gatepro::Router<X, W> router(config);
    router.refresh(w, 0);
    const gatepro::PackedWeights<A> packed(gatepro::view(w));
    routing_data::Outcome<gatepro::Router<X, W>> outcome(router, tokens);
    gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{tokens, 2, 1, true});
    const auto dweights = random_matrix<A>(tokens, 3, 3);
    const auto dlogits = random_matrix<A>(tokens, experts, 4);
    RowMatrix<A> dx = RowMatrix<A>::Zero(tokens, hidden);
    RowMatrix<A> dw = RowMatrix<A>::Zero(experts, hidden);
    RowMatrix<X> dx_of_x = RowMatrix<X>::Zero(tokens, hidden);
    const gatepro::Workspace workspace = buffers.workspace();
    const RowMatrix<A> bias = random_matrix<A>(1, experts, 5);
    const gatepro::BiasedWeights<W, A> biased{w, {bias.data(), experts}};
    std::vector<A> dbias(static_cast<std::size_t>(experts));

    for (const Competition& competition :
         {Competition::off(), Competition::penalty(0.1), Competition::eliminate()}) {
      EXPECT_EQ(cost_of([&] { router.set_competition(competition); }), 0);
      EXPECT_EQ(cost_of([&] { router.forward(x, w, outcome.view(), workspace); }), 0);
      EXPECT_EQ(cost_of([&] { router.forward(x, packed, outcome.view(), workspace); }), 0);
      EXPECT_EQ(cost_of([&] { router.forward(x, biased, outcome.view(), workspace); }), 0);
      EXPECT_EQ(cost_of([&] { router.forward(x, w, buffers); }), 0);
      EXPECT_EQ(cost_of([&] {
                  auto out = buffers.view();
                  out.logits_TE = {};
                  router.forward_logits(outcome.logits_TE, out, workspace);
                }),
                0);
      EXPECT_EQ(cost_of([&] { router.backward(x, w, buffers, {dweights}, {dx, dw}); }), 0);
      EXPECT_EQ(cost_of([&] { router.backward(x, w, buffers, {dweights, dlogits}, {dx, dw}); }), 0);
      gatepro::GateGradients<A> with_bias{dx, dw};
      with_bias.dbias_E = dbias;
      EXPECT_EQ(cost_of([&] { router.backward(x, w, buffers, {dweights}, with_bias); }), 0);
      EXPECT_EQ(cost_of([&] {
                  router.backward(x, w, buffers, {dweights, dlogits}, with_bias);
                }),
                0);
      if constexpr (std::is_same_v<gatepro::accumulator_t<X>, A>) {
        const gatepro::GateGradients<A, X> gradients{dx_of_x, dw};
        EXPECT_EQ(cost_of([&] { router.backward(x, w, buffers, {dweights}, gradients); }), 0);
        EXPECT_EQ(cost_of([&] {
                    router.backward(x, w, buffers, {dweights, dlogits}, gradients);
                  }),
                  0);
      }
      EXPECT_EQ(cost_of([&] { buffers.resize(0), buffers.resize(tokens); }), 0);
      EXPECT_EQ(cost_of([&] {
                  router.forward_workspace_bytes(4);
                  router.backward_workspace_bytes(tokens, 4);
                }),
                0);
    }
    gatepro::OrthogonalityRule rule;
    rule.coefficient = 1;
    std::vector<std::byte> memory(
        gatepro::orthogonality_loss_workspace_bytes<A>(experts, hidden, 2));
    std::vector<std::byte> more(gatepro::orthogonal_weights_workspace_bytes(experts, hidden));
    EXPECT_EQ(cost_of([&] { gatepro::orthogonal_weights(1, 1.0, gatepro::view(dw), more); }), 0);
    for (const bool only_partners : {false, true}) {
      rule.only_partners = only_partners;
      EXPECT_EQ(cost_of([&] {
                  gatepro::orthogonality_loss(gatepro::view(w),
                                              router.similarity_cache().partners(), rule,
                                              gatepro::view(dw), memory);
                }),
                0);
    }
    // Nor does a refresh, once it has its memory.
    router.refresh_now(w, 1);
    router.refresh_now(w, 2);
    EXPECT_EQ(cost_of([&] { router.refresh(w, 2); }), 0);
  }
}

// Losses, counts and the bias, in a step with micro-batches.
template <class A>
void expect_no_cost_of_balancing() {
  constexpr Index tokens = 300, experts = 20, top_k = 3;
  const auto logits = random_matrix<A>(tokens, experts, 5);
  RowMatrix<A> dlogits = RowMatrix<A>::Zero(tokens, experts);
  RowMatrix<std::int32_t> ids(tokens, top_k);
  for (Index t = 0; t < tokens; ++t) ids.row(t) << 0, 5, 19;
  std::int64_t counted[experts];
  constexpr std::int64_t borders[] = {0, 70, tokens};
  constexpr std::uint8_t no_padding[tokens] = {};
  const gatepro::VectorView<std::int64_t> counts(counted, experts);
  const gatepro::VectorView<const std::int64_t> begin(borders, 3);
  const gatepro::VectorView<const std::uint8_t> padding(no_padding, tokens);
  gatepro::BalanceAccumulator sums(experts);
  gatepro::ExpertBias<A> bias(experts);
  const gatepro::QuantileRule rule;
  gatepro::ExpertBias<A> set(experts);
  gatepro::QuantileCounts<A> quantiles(experts, rule);
  const gatepro::LossWeight weight{1e-2};
  auto memory = data::scratch(std::size_t{1} << 20);
  for (const auto function :
       {gatepro::ScoreFunction::softmax_after_top_k, gatepro::ScoreFunction::sqrt_softplus}) {
    EXPECT_EQ(
        cost_of([&] {
          gatepro::count_unpenalised(gatepro::view(logits), function, top_k, padding, counts,
                                     memory);
          sums.add({counts, tokens});
          bias.accumulate(counts);
          const gatepro::LossLogits loss{gatepro::view(logits), padding, dlogits};
          gatepro::load_balancing_loss(loss, sums.latest(), {function, top_k}, weight, memory);
          gatepro::sequence_load_balancing_loss(
              loss, gatepro::SequenceChoices{gatepro::strided_view(ids), begin}, function, weight,
              memory);
          gatepro::z_loss(loss, weight, memory);
          bias.step(gatepro::NoReduce(), 1e-3);
          quantiles.commit(gatepro::count_needed_bias(gatepro::view(logits), set.values(), padding,
                                                      top_k, rule, quantiles.next(), memory));
          quantiles.step(gatepro::NoReduce(), set);
          sums.reset();
        }),
        0);
  }
}

// From noise to the experts and back.
template <class A>
void expect_no_cost_of_dispatch() {
  constexpr Index tokens = 300, experts = 20, top_k = 3, hidden = 33;
  constexpr std::size_t rows = 4 * experts + tokens * top_k;
  auto x = random_matrix<A>(tokens, hidden, 6);
  auto logits = random_matrix<A>(tokens, experts, 7), more_logits = logits;
  auto weights = random_matrix<A>(tokens, top_k, 8);
  RowMatrix<A> sorted = RowMatrix<A>::Zero(rows, hidden), y = x, dweights = weights;
  RowMatrix<std::int32_t> ids(tokens, top_k), row_of_choice(tokens, top_k);
  RowMatrix<std::uint8_t> kept(tokens, top_k);
  std::vector<std::int32_t> choice_of_row(rows), token_of_row(rows);
  std::vector<std::int64_t> counts(experts);
  std::vector<A> sums(tokens), totals(tokens);
  gatepro::DispatchPlan<> plan;
  plan.choice_of_row_N = choice_of_row;
  plan.token_of_row_N = token_of_row;
  plan.row_TK = row_of_choice;
  const auto row_TK = gatepro::strided_view(row_of_choice);
  const auto weights_TK = gatepro::strided_view(weights);
  constexpr int received[] = {1, 2, 0, 3, 0, 4};
  gatepro::DispatchPlan<> regrouped;
  regrouped.choice_of_row_N = choice_of_row;
  auto memory = data::scratch(std::size_t{1} << 20);
  for (const auto policy : {gatepro::DropPolicy::probability, gatepro::DropPolicy::choice_major}) {
    EXPECT_EQ(
        cost_of([&] {
          gatepro::jitter_tokens(gatepro::view(x), 0.1, {1, 2}, gatepro::view(y));
          gatepro::jitter_backward(gatepro::view(y), 0.1, {1, 2}, gatepro::view(x));
          gatepro::add_logit_noise(0.1, {1, 2}, gatepro::view(logits));
          gatepro::random_logits({1, 2}, gatepro::view(logits));
          gatepro::round_robin_logits(0, top_k, gatepro::view(logits));
          gatepro::round_robin_ids(0, experts, gatepro::strided_view(ids));
          gatepro::soft_cap_logits(3, gatepro::view(logits));
          gatepro::soft_cap_backward(3, gatepro::view(logits), gatepro::view(more_logits));
          gatepro::soft_cap_backward(3, gatepro::view(logits),
                                     gatepro::Choices{gatepro::strided_view(ids)},
                                     gatepro::strided_view(dweights));
          const Index capacity = gatepro::expert_capacity(tokens, experts, top_k, {0.9});
          gatepro::total_weights<A>(weights_TK, totals);
          gatepro::drop_over_capacity(
              gatepro::Choices{gatepro::strided_view(ids)}, {capacity, policy},
              gatepro::KeptRouting{weights_TK, gatepro::strided_view(kept),
                                   gatepro::VectorView<std::int64_t>(counts)},
              memory);
          gatepro::renormalise_kept<A>(
              gatepro::Choices{gatepro::strided_view(ids), {}, gatepro::strided_view(kept)}, totals,
              weights_TK, sums);
          gatepro::plan_dispatch(
              gatepro::Choices{gatepro::strided_view(ids), {}, gatepro::strided_view(kept)},
              experts, {gatepro::DispatchOrder::token_major, 4}, plan, memory);
          gatepro::permute(plan.token_of_row_N, gatepro::view(x), gatepro::view(sorted));
          gatepro::combine(row_TK, weights_TK, gatepro::view(sorted), gatepro::view(y));
          gatepro::combine_backward_weights(row_TK, gatepro::view(sorted), gatepro::view(y),
                                            gatepro::strided_view(dweights));
          gatepro::combine_backward_rows(plan.choice_of_row_N, weights_TK, gatepro::view(y),
                                         gatepro::view(sorted));
          gatepro::permute_backward(row_TK, gatepro::view(sorted), gatepro::view(x));
          gatepro::permute_scaled(plan.choice_of_row_N, weights_TK, gatepro::view(x),
                                  gatepro::view(sorted));
          gatepro::permute_scaled_backward_weights(row_TK, gatepro::view(x), gatepro::view(sorted),
                                                   gatepro::strided_view(dweights));
          const gatepro::Choices chosen{
              gatepro::strided_view(ids), {}, gatepro::strided_view(kept)};
          gatepro::dense_routing(chosen, experts, weights_TK, gatepro::DenseRouting<A>{logits});
          gatepro::dense_routing_backward(chosen, gatepro::view(logits),
                                          gatepro::strided_view(dweights));
          gatepro::merge_logit_gradients(chosen, {gatepro::strided_view(dweights)},
                                         gatepro::view(logits));
          gatepro::plan_regroup(gatepro::MatrixView<const int>(received, 2, 3), {}, regrouped,
                                memory);
          gatepro::renormalise_kept_backward<A>(
              gatepro::Choices{gatepro::strided_view(ids), {}, gatepro::strided_view(kept)}, totals,
              weights_TK, sums, gatepro::strided_view(dweights), gatepro::strided_view(dweights));
          gatepro::drop_backward(gatepro::strided_view(kept), gatepro::strided_view(dweights),
                                 gatepro::strided_view(dweights));
        }),
        0);
  }
}

TEST(NoAllocation, QuantilesOfACompleteRouter) {
  constexpr Index tokens = 300, hidden = 40, experts = 8, top_k = 3;
  const auto x = random_matrix<float>(tokens, hidden, 1);
  const auto w = random_matrix<float>(experts, hidden, 2);
  gatepro::CompleteConfig config{{hidden, experts, top_k, gatepro::Competition::off()}};
  config.quantile.enabled = true;
  gatepro::CompleteRouter<float> router(config);
  gatepro::RoutingBuffers buffers(router, tokens);
  EXPECT_EQ(cost_of([&] {
              router.forward(x, w, {}, buffers);
              router.end_step();
            }),
            0);
}

TEST(NoAllocation, CompleteRouter) {
  constexpr Index tokens = 300, hidden = 40, experts = 8, top_k = 3;
  const auto x = random_matrix<float>(tokens, hidden, 1);
  const auto w = random_matrix<float>(experts, hidden, 2);
  const auto dweights = random_matrix<float>(tokens, top_k, 3);
  gatepro::CompleteConfig config = complete_data::full_config(hidden, experts, top_k);
  config.fewer = gatepro::FewerChoices{0.9, 2};
  config.competition = gatepro::Competition::penalty(0.1);
  config.adaptive_lambda.share = 0.1;
  gatepro::CompleteRouter<float> router(config);
  router.refresh(w, 0);
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{tokens, 1, 1, true, true});
  const std::vector<std::int64_t> sequences = {0, tokens};
  gatepro::RoutingRecord<> record;
  gatepro::ForwardInputs<> in;
  in.sequence_begin_S1 = sequences;
  in.record = &record;
  router.forward(x, w, in, buffers);  // the record grows once
  RowMatrix<float> dx = RowMatrix<float>::Zero(tokens, hidden);
  RowMatrix<float> dw = RowMatrix<float>::Zero(experts, hidden);
  EXPECT_EQ(cost_of([&] { router.forward(x, w, in, buffers); }), 0);
  EXPECT_EQ(cost_of([&] { router.backward(x, w, in, buffers, {dweights}, {dx, dw}); }), 0);
  in.record = nullptr;
  in.replay = &record;
  in.pass = gatepro::Pass::recompute;
  EXPECT_EQ(cost_of([&] { router.forward(x, w, in, buffers); }), 0);
  const auto table = gatepro::random_hash_table(9, experts, top_k, 1);
  const std::vector<std::int64_t> token_ids(static_cast<std::size_t>(tokens), 5);
  in.replay = nullptr;
  in.pass = gatepro::Pass::training;
  in.hash = &table;
  in.token_ids_T = token_ids;
  EXPECT_EQ(cost_of([&] { router.forward(x, w, in, buffers); }), 0);
  RowMatrix<std::int64_t> ids(tokens, top_k);
  EXPECT_EQ(cost_of([&] { gatepro::hash_ids(table, token_ids, {}, gatepro::strided_view(ids)); }),
            0);
  EXPECT_EQ(cost_of([&] { router.end_step(); }), 0);
}

TEST(NoAllocation, Metrics) {
  const Index tokens = 300, experts = 12, top_k = 4;
  const auto logits = random_matrix<float>(tokens, experts, 5);
  const RowMatrix<float> similarity = random_matrix<float>(experts, experts, 6);
  const RowMatrix<std::int32_t> partners = RowMatrix<std::int32_t>::Zero(experts, 1);
  const gatepro::RivalTable rivals(partners, false);
  const RowMatrix<std::int32_t> ids = RowMatrix<std::int32_t>::Constant(tokens, top_k, -1);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(experts), 3);
  const gatepro::VectorView<std::int64_t> counts_E(counts);
  std::vector<gatepro::CoactivatedPair> best(5);
  std::vector<std::byte> memory(gatepro::count_margins_workspace_bytes<float>(experts, top_k));
  gatepro::LoadCounts loads(experts);
  gatepro::Coactivation pairs(experts);
  gatepro::MarginCounts margins;
  gatepro::LambdaEstimate lambda({0.1, 16});
  EXPECT_EQ(cost_of([&] {
              loads.add(counts);
              loads.metrics();
              gatepro::pairwise_similarity(gatepro::view(similarity));
              gatepro::partner_similarity(gatepro::view(similarity), partners);
              gatepro::add_pairwise_histogram(gatepro::view(similarity), counts_E);
              gatepro::partner_graph(partners, counts_E);
              pairs.add(gatepro::Choices{gatepro::strided_view(ids)});
              pairs.top_pairs(gatepro::VectorView<gatepro::CoactivatedPair>(best));
              gatepro::count_margins(gatepro::view(logits), rivals, {top_k}, {}, margins, memory);
              margins.lambda_for_share(0.1);
              lambda.observe(gatepro::view(logits), rivals, {top_k}, {}, memory);
              lambda.step();
            }),
            0);
}

TEST(NoAllocation, RoutingStages) {
  const Index tokens = 300, experts = 12, top_k = 4;
  const auto logits = random_matrix<float>(tokens, experts, 5);
  const auto dweights = random_matrix<float>(tokens, top_k, 6);
  const std::vector<float> bias(static_cast<std::size_t>(experts), -0.5F);
  const std::vector<std::uint8_t> is_padding(static_cast<std::size_t>(tokens), 0);
  std::vector<std::int32_t> partners{1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  const gatepro::RivalTable rivals(
      gatepro::StridedView<const std::int32_t>(partners.data(), experts, 1), false);
  RowMatrix<std::int64_t> ids(tokens, top_k);
  RowMatrix<float> weights(tokens, top_k), scores(tokens, top_k), dselected(tokens, top_k);
  RowMatrix<std::uint8_t> penalised(tokens, top_k);
  RowMatrix<float> dlogits = RowMatrix<float>::Zero(tokens, experts);
  RowMatrix<float> choice_values(tokens, top_k);
  gatepro::RoutingView<float, std::int64_t> out{ids, weights, {}, {}, scores, penalised};
  out.choice_values_TK = choice_values;
  const std::vector<std::int64_t> begin_S1{0, 100, tokens};
  const gatepro::RecordedChoices<std::int64_t> chosen{ids, penalised};
  gatepro::RoutingView<float, std::int64_t> weighed;
  weighed.weights_TK = weights;
  weighed.scores_TK = scores;
  const gatepro::GroupLimit groups{3, 2, gatepro::GroupScore::top_2};
  for (auto function :
       {gatepro::ScoreFunction::softmax_after_top_k, gatepro::ScoreFunction::softmax_before_top_k,
        gatepro::ScoreFunction::sigmoid, gatepro::ScoreFunction::sqrt_softplus}) {
    const gatepro::SelectionRule rule{
        top_k, {function, false, 1}, groups, Competition::eliminate()};
    std::vector<std::byte> memory(gatepro::weigh_choices_workspace_bytes<float>(experts, rule));
    EXPECT_EQ(
        cost_of([&] {
          gatepro::route_logits_workspace_bytes<float>(experts, rule, 4);
          gatepro::route_logits({logits, bias, is_padding}, rivals, rule, out, memory);
          gatepro::weigh_choices({logits, {}, is_padding}, rivals, rule, chosen, weighed, memory);
          gatepro::keep_fewer_choices<float>({logits, {}, is_padding}, rule, {0.6, 2.5}, begin_S1,
                                             out, memory);
          gatepro::route_logits_backward<float>({logits, {}, is_padding}, rivals, rule, chosen,
                                                {scores, dweights, dselected, dlogits}, memory);
        }),
        0);
  }
}

TEST(NoAllocation, Float) { expect_no_cost<float, float>(); }
TEST(NoAllocation, HalfWithDoubleWeights) { expect_no_cost<gatepro::half, double>(); }
TEST(NoAllocation, BalancingInFloat) { expect_no_cost_of_balancing<float>(); }
TEST(NoAllocation, DispatchInFloat) { expect_no_cost_of_dispatch<float>(); }
TEST(NoAllocation, DispatchInDouble) { expect_no_cost_of_dispatch<double>(); }
TEST(NoAllocation, BalancingInDouble) { expect_no_cost_of_balancing<double>(); }

}  // namespace
