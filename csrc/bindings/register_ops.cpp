// search, dedup, gram, margins: check, allocate, release the GIL, call.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>

#include "bindings/arrays.h"
#include "bindings/register.h"
#include "common/errors.h"
#include "cpu/isa.h"
#include "ops/dedup.h"
#include "ops/gram.h"
#include "ops/margins.h"
#include "ops/peak.h"
#include "ops/search.h"

namespace py = pybind11;

namespace gplfast::bindings {

SignalCheck::SignalCheck() {
    const py::object main_thread = py::module_::import("threading").attr("main_thread")();
    is_main_thread_ =
        main_thread.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident();
}

void SignalCheck::operator()() {
    if (!is_main_thread_) return;
    constexpr auto interval = std::chrono::milliseconds(20);
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < interval) return;
    last_ = now;
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

Metric metric_from(const std::string& name, const char* op) {
    if (name == "ip") return Metric::inner_product;
    if (name == "cosine") return Metric::cosine;
    throw ConfigError(std::string(op) + ": metric is '" + name + "'; use 'ip' or 'cosine'");
}

py::tuple run_search(const ops::SearchProblem& problem, const cpu::KernelSet& kernels) {
    const py::array::ShapeContainer shape{problem.queries.n_rows(), problem.k};
    py::array_t<float> scores(shape);
    py::array_t<int64_t> ids(shape);
    float* scores_out = scores.mutable_data();
    int64_t* ids_out = ids.mutable_data();
    const SignalCheck check;
    {
        // Safe: the caller holds what the problem views, and only memory is used.
        const py::gil_scoped_release release;
        ops::search(problem, kernels, check, scores_out, ids_out);
    }
    return py::make_tuple(scores, ids);
}

namespace {

ops::DuplicateRule rule_from(const std::string& name) {
    if (name == "components") return ops::DuplicateRule::components;
    if (name == "greedy") return ops::DuplicateRule::greedy;
    if (name == "any-earlier") return ops::DuplicateRule::any_earlier;
    throw ConfigError("dedup: rule is '" + name + "'; use 'components', 'greedy' or 'any-earlier'");
}

ops::Reference reference_from(const std::string& name) {
    if (name == "min") return ops::Reference::min;
    if (name == "mean") return ops::Reference::mean;
    if (name == "max") return ops::Reference::max;
    if (name == "first") return ops::Reference::first;
    throw ConfigError("margins: reference is '" + name + "'; use 'min', 'mean', 'max' or 'first'");
}

ops::SearchProblem problem_from(const char* op, const py::object& queries, const py::object& docs,
                                size_t k, const std::string& metric, size_t threads,
                                const cpu::KernelSet& kernels) {
    ops::SearchProblem problem;
    problem.queries = rows_from(op, "queries", queries, kernels);
    problem.docs = rows_from(op, "docs", docs, kernels);
    check_same_dim(op, "queries", problem.queries.dim(), "docs", problem.docs.dim());
    problem.k = k;
    problem.metric = metric_from(metric, op);
    problem.n_threads = threads;
    return problem;
}

py::tuple search(const py::object& queries, const py::object& docs, size_t k,
                 const std::string& metric, const py::object& exclude, size_t threads,
                 size_t block_queries, size_t block_docs) {
    const cpu::KernelSet kernels = cpu::current_kernels();
    ops::SearchProblem problem = problem_from("search", queries, docs, k, metric, threads, kernels);
    problem.exclude =
        exclude_from("search", exclude, problem.queries.n_rows(), problem.docs.n_rows());
    problem.block_queries = block_queries;
    problem.block_docs = block_docs;
    return run_search(problem, kernels);
}

py::dict count_survivors(const py::object& queries, const py::object& docs, size_t k,
                         const std::string& metric, size_t threads) {
    const cpu::KernelSet kernels = cpu::current_kernels();
    ops::SearchProblem problem =
        problem_from("count_survivors", queries, docs, k, metric, threads, kernels);
    ops::BoundCounts counts;
    problem.counts = &counts;
    run_search(problem, kernels);
    py::dict result;
    result["candidates"] = counts.n_candidates.load();
    result["rescored"] = counts.n_rescored.load();
    return result;
}

py::tuple dedup(const py::object& docs, float threshold, const std::string& metric, bool keep_last,
                const std::string& rule, size_t threads, size_t block_rows, size_t scan_depth) {
    const cpu::KernelSet kernels = cpu::current_kernels();
    ops::DedupProblem problem;
    problem.docs = rows_from("dedup", "docs", docs, kernels);
    problem.threshold = threshold;
    problem.metric = metric_from(metric, "dedup");
    problem.keep_last = keep_last;
    problem.rule = rule_from(rule);
    problem.n_threads = threads;
    problem.block_rows = block_rows;
    problem.scan_depth = scan_depth;
    if (problem.docs.n_rows() > UINT32_MAX) {
        throw ShapeError("dedup: docs has " + std::to_string(problem.docs.n_rows()) +
                         " rows but 2^32 - 1 is the most; split it");
    }

    py::array_t<int64_t> representative(static_cast<py::ssize_t>(problem.docs.n_rows()));
    int64_t* representative_out = representative.mutable_data();
    uint64_t n_pairs = 0;
    const SignalCheck check;
    {
        // Safe: the argument and the result are held by this frame; only their memory is used.
        const py::gil_scoped_release release;
        n_pairs = ops::dedup(problem, kernels, check, representative_out);
    }
    return py::make_tuple(representative, n_pairs);
}

py::tuple gram(const py::object& docs, const py::object& lists, const std::string& metric,
               bool is_triangle, const std::string& dtype, size_t threads, size_t block_rows) {
    const cpu::KernelSet kernels = cpu::current_kernels();
    ops::GramProblem problem;
    problem.docs = rows_from("gram", "docs", docs, kernels);
    const Lists rows = lists_from("gram", lists, problem.docs.n_rows());
    problem.indptr = rows.indptr;
    problem.ids = rows.ids;
    problem.n_lists = rows.n_lists;
    problem.metric = metric_from(metric, "gram");
    problem.is_triangle = is_triangle;
    problem.n_threads = threads;
    problem.block_rows = block_rows;
    if (dtype != "float32" && dtype != "float16") {
        throw ConfigError("gram: dtype is '" + dtype + "'; use 'float32' or 'float16'");
    }

    py::array_t<int64_t> indptr(static_cast<py::ssize_t>(problem.n_lists + 1));
    int64_t* indptr_out = indptr.mutable_data();
    ops::gram_indptr(problem, indptr_out);
    const py::array::ShapeContainer shape{indptr_out[problem.n_lists]};
    py::array values(py::dtype(dtype), shape);
    void* values_out = values.mutable_data();
    const SignalCheck check;
    {
        // Safe: the arguments and results are held by this frame; only their memory is used.
        const py::gil_scoped_release release;
        const bool is_half = dtype == "float16";
        ops::gram(problem, *kernels.floats, indptr_out, check,
                  is_half ? nullptr : static_cast<float*>(values_out),
                  is_half ? static_cast<uint16_t*>(values_out) : nullptr);
    }
    return py::make_tuple(values, indptr);
}

ops::Sampling sampling_from(const std::string& name) {
    if (name == "top") return ops::Sampling::top;
    if (name == "uniform") return ops::Sampling::uniform;
    if (name == "weighted") return ops::Sampling::weighted;
    throw ConfigError("margins: sampling is '" + name + "'; use 'top', 'uniform' or 'weighted'");
}

ops::MarginFilters filters_from(const py::dict& filters) {
    const auto number = [&](const char* name) { return filters[name].cast<double>(); };
    ops::MarginFilters result;
    result.first_rank = filters["first_rank"].cast<int64_t>();
    result.end_rank = filters["end_rank"].cast<int64_t>();
    result.min_score = number("min_score");
    result.max_score = number("max_score");
    result.absolute_margin = number("absolute_margin");
    result.relative_margin = number("relative_margin");
    result.quota = filters["quota"].cast<int64_t>();
    result.sampling = sampling_from(filters["sampling"].cast<std::string>());
    result.temperature = number("temperature");
    result.seed = filters["seed"].cast<uint64_t>();
    return result;
}

py::dict to_dict(const ops::Dropped& dropped) {
    py::dict result;
    for (size_t i = 0; i < ops::n_drop_reasons; ++i) {
        result[ops::drop_reason_names[i]] = dropped[i];
    }
    return result;
}

py::tuple margins(const py::object& positive_scores, const py::object& positive_indptr,
                  const py::object& negative_scores, const py::object& negative_indptr,
                  const std::string& reference, const py::object& positive_groups,
                  const py::object& negative_groups, const py::dict& filters, size_t threads) {
    size_t n_positive_queries = 0;
    ops::MarginProblem problem{};
    problem.positives =
        ragged_from("margins", "positive", positive_scores, positive_indptr, n_positive_queries);
    problem.negatives =
        ragged_from("margins", "negative", negative_scores, negative_indptr, problem.n_queries);
    check_margins(problem.positives, n_positive_queries, problem.negatives, problem.n_queries);
    const auto n_positives = static_cast<size_t>(problem.positives.indptr[n_positive_queries]);
    const auto n_negatives = static_cast<size_t>(problem.negatives.indptr[problem.n_queries]);
    problem.positives.groups =
        groups_from("margins", "positive_groups", positive_groups, n_positives);
    problem.negatives.groups =
        groups_from("margins", "negative_groups", negative_groups, n_negatives);
    problem.reference = reference_from(reference);
    problem.filters = filters_from(filters);
    problem.n_threads = threads;
    const cpu::KernelSet kernels = cpu::current_kernels();

    py::array_t<float> result(static_cast<py::ssize_t>(n_negatives));
    py::array_t<bool> kept(static_cast<py::ssize_t>(n_negatives));
    float* result_out = result.mutable_data();
    auto* kept_out = reinterpret_cast<uint8_t*>(kept.mutable_data());
    ops::Dropped dropped{};
    const SignalCheck check;
    {
        // Safe: the arguments and results are held by this frame; only their memory is used.
        const py::gil_scoped_release release;
        dropped = ops::margins(problem, *kernels.floats, check, result_out, kept_out);
    }
    return py::make_tuple(result, kept, to_dict(dropped));
}

double measure_peak(const std::string& kind, size_t threads, double seconds, size_t n_bytes) {
    const cpu::KernelSet kernels = cpu::current_kernels();
    const ops::PeakProblem problem{std::max<size_t>(threads, 1), seconds};
    if (kind == "int8" && kernels.int8 == nullptr) {
        throw UnavailableError(std::string("measure_peak: instruction set ") +
                               cpu::isa_name(cpu::current_isa()) + " has no int8 multiply-adds");
    }
    const SignalCheck check;
    if (kind == "read") {
        py::array_t<uint64_t> words(static_cast<py::ssize_t>(n_bytes / sizeof(uint64_t)));
        uint64_t* data = words.mutable_data();
        const py::gil_scoped_release release;
        return ops::read_peak(data, n_bytes / sizeof(uint64_t), problem, check);
    }
    const py::gil_scoped_release release;
    if (kind == "int8") return ops::int8_peak(kernels, problem, check);
    if (kind == "float32") return ops::float32_peak(kernels, problem, check);
    throw ConfigError("measure_peak: kind is '" + kind + "'; use 'float32', 'int8' or 'read'");
}

}  // namespace

void register_ops(py::module_& m) {
    m.def("search", &search, py::arg("queries"), py::arg("docs"), py::arg("k"), py::arg("metric"),
          py::arg("exclude"), py::arg("threads"), py::kw_only(), py::arg("block_queries") = 0,
          py::arg("block_docs") = 0);
    m.def("count_survivors", &count_survivors, py::arg("queries"), py::arg("docs"), py::arg("k"),
          py::arg("metric"), py::arg("threads"));
    m.def("dedup", &dedup, py::arg("docs"), py::arg("threshold"), py::arg("metric"),
          py::arg("keep_last"), py::arg("rule"), py::arg("threads"), py::kw_only(),
          py::arg("block_rows") = 0, py::arg("scan_depth") = 0);
    m.def("gram", &gram, py::arg("docs"), py::arg("lists"), py::arg("metric"), py::arg("triangle"),
          py::arg("dtype"), py::arg("threads"), py::kw_only(), py::arg("block_rows") = 0);
    m.def("margins", &margins, py::arg("positive_scores"), py::arg("positive_indptr"),
          py::arg("negative_scores"), py::arg("negative_indptr"), py::arg("reference"),
          py::arg("positive_groups"), py::arg("negative_groups"), py::arg("filters"),
          py::arg("threads"));
    m.def("measure_peak", &measure_peak, py::arg("kind"), py::arg("threads"), py::arg("seconds"),
          py::kw_only(), py::arg("n_bytes") = size_t{1} << 30);
}

}  // namespace gplfast::bindings
