// SPDX-License-Identifier: MIT
// Mutual pairs, hubs and churn of tables of partners.
#include <gatepro/metrics/partner_graph.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "support/errors.hpp"
#include "support/inputs.hpp"

namespace {

using gatepro::Index;
using gatepro::PartnerGraph;
using gatepro::RowMatrix;
using gatepro::VectorView;
using Counts = std::vector<std::int64_t>;
using Table = RowMatrix<std::int32_t>;

PartnerGraph graph_of(const Table& partners_EM, Counts& in_degree_E) {
  in_degree_E.assign(static_cast<std::size_t>(partners_EM.rows()), -5);
  return gatepro::partner_graph(partners_EM, VectorView<std::int64_t>(in_degree_E));
}

// 0 and 1 name each other, 2 and 3 name 1, 4 has none.
TEST(PartnerGraph, HandWorked) {
  Table partners(5, 1);
  partners << 1, 0, 1, 1, 4;
  Counts in_degree;
  const PartnerGraph graph = graph_of(partners, in_degree);
  EXPECT_EQ(in_degree, (Counts{1, 3, 0, 0, 0}));
  EXPECT_EQ(graph.partnered_experts, 4);
  EXPECT_EQ(graph.mutual_pairs, 1);
  EXPECT_EQ(graph.unnamed_experts, 3);
  EXPECT_EQ(graph.largest_in_degree, 3);
  EXPECT_EQ(graph.hub, 1);
  Table later = partners;
  later(3, 0) = 0;
  later(4, 0) = 0;
  EXPECT_EQ(gatepro::changed_partners(partners, later), 2);
  EXPECT_EQ(gatepro::changed_partners(partners, partners), 0);
}

TEST(PartnerGraph, TheLowestOfEqualHubs) {
  Table partners(4, 1);
  partners << 2, 3, 3, 2;
  Counts in_degree;
  EXPECT_EQ(graph_of(partners, in_degree).hub, 2);
}

// An expert counts once, whichever of its partners is another.
TEST(PartnerGraph, AllPartnersOfAListCount) {
  Table before(4, 2);
  before << 1, 2, 0, 3, 3, 0, 2, 1;
  Table after = before;
  after(0, 1) = 3;
  after.row(2) << 0, 3;
  EXPECT_EQ(gatepro::changed_partners(before, after), 2);
}

TEST(PartnerGraph, OneExpertHasNoPartner) {
  Counts in_degree;
  const PartnerGraph graph = graph_of(Table::Zero(1, 1), in_degree);
  EXPECT_EQ(in_degree, Counts{0});
  EXPECT_EQ(graph.partnered_experts + graph.mutual_pairs + graph.largest_in_degree + graph.hub, 0);
  EXPECT_EQ(graph.unnamed_experts, 1);
}

TEST(PartnerGraph, MatchesSetsOfEdges) {
  const Index experts = 23;
  for (const Index m : {1, 2, 4}) {
    Table partners(experts, m);
    std::set<std::pair<Index, Index>> edges;
    for (Index i = 0; i < experts; ++i) {
      for (Index c = 0; c < m; ++c) {  // distinct, now and then none
        const Index j = (i + data::random_below(5, 7, std::uint64_t(i)) + c) % experts;
        partners(i, c) = static_cast<std::int32_t>(j);
        if (j != i) edges.insert({i, j});
      }
    }
    Counts in_degree, want(static_cast<std::size_t>(experts));
    Index mutual = 0, partnered = 0;
    for (const auto& [i, j] : edges) {
      ++want[static_cast<std::size_t>(j)];
      mutual += i < j && edges.count({j, i}) != 0 ? 1 : 0;
    }
    for (Index i = 0; i < experts; ++i) partnered += partners(i, 0) != i ? 1 : 0;
    const PartnerGraph graph = graph_of(partners, in_degree);
    EXPECT_EQ(in_degree, want);
    EXPECT_EQ(graph.mutual_pairs, mutual);
    EXPECT_EQ(graph.partnered_experts, partnered);
    EXPECT_EQ(graph.largest_in_degree, *std::max_element(want.begin(), want.end()));
    EXPECT_EQ(in_degree[static_cast<std::size_t>(graph.hub)], graph.largest_in_degree);
  }
}

TEST(PartnerGraph, BadInput) {
  Table good = Table::Zero(3, 1), bad = good;
  bad(1, 0) = -1;
  Counts two(2), three(3, 8);
  const VectorView<std::int64_t> two_E(two), three_E(three);
  expect_error([&] { gatepro::partner_graph(good, two_E); },
               {"partner_graph", "in_degree_E", "size=2"});
  expect_error([&] { gatepro::partner_graph(bad, three_E); }, {"partners_EM", "id=-1", "row=1"});
  expect_error([&] { gatepro::partner_graph({}, three_E); }, {"num_experts=0"});
  expect_error([&] { gatepro::changed_partners(good, bad); },
               {"changed_partners", "after_EM", "id=-1"});
  expect_error([&] { gatepro::changed_partners(bad, good); }, {"before_EM", "id=-1"});
  expect_error([&] { gatepro::changed_partners(good, good.topRows(2)); }, {"after_EM", "rows=2"});
  EXPECT_EQ(three, Counts(3, 8));
}

}  // namespace
