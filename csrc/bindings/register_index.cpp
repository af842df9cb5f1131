// Index: documents that stay for many searches.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/register.h"
#include "common/errors.h"
#include "ops/index.h"

namespace py = pybind11;

namespace gplfast::bindings {
namespace {

// The index and the arrays it views. Searches run side by side, an addition alone.
class PyIndex {
  public:
    PyIndex(size_t dim, const std::string& metric, size_t chunk_docs)
        : index_(std::make_unique<ops::Index>(dim, metric_from(metric, "Index"), chunk_docs)) {}

    static std::unique_ptr<PyIndex> open(const py::object& rows, const std::string& metric,
                                         const py::object& packed, const py::object& mean,
                                         size_t chunk_docs, const std::vector<uint64_t>& hashes) {
        const RowSource source = rows_from("Index", "rows", rows, cpu::current_kernels());
        const Metric kind = metric_from(metric, "Index");
        std::unique_ptr<ops::PackedDocs> docs;
        if (!packed.is_none()) {
            const auto bytes = packed.cast<py::array_t<uint8_t>>();
            const auto values = mean.cast<std::vector<float>>();
            docs = std::make_unique<ops::PackedDocs>(values, kind, chunk_docs);
            attach(*docs, bytes, source.n_rows(), hashes);
        }
        auto opened = std::make_unique<PyIndex>(source.dim(), metric, 0);
        opened->index_ = std::make_unique<ops::Index>(source, kind, std::move(docs));
        opened->pieces_ = {rows};
        opened->packed_file_ = packed;
        return opened;
    }

    void add(const py::object& docs, size_t threads) {
        const cpu::KernelSet kernels = cpu::current_kernels();
        const RowSource rows = rows_from("Index.add", "docs", docs, kernels);
        check_same_dim("Index.add", "docs", rows.dim(), "the index", index_->rows().dim());
        const SignalCheck check;
        {
            const py::gil_scoped_release release;
            const std::unique_lock lock(mutex_);
            index_->add(rows, kernels, threads, check);
            // Before another addition: a saved file has the rows in the order of the pieces. Who
            // waits for the lock holds no GIL.
            const py::gil_scoped_acquire gil;
            pieces_.push_back(docs);
        }
    }

    py::tuple search(const py::object& queries, size_t k, const py::object& exclude, size_t threads,
                     size_t begin, size_t end, size_t block_queries, size_t block_docs) const {
        const auto lock = shared_lock();
        const cpu::KernelSet kernels = cpu::current_kernels();
        ops::SearchProblem problem = index_->problem(begin, end);
        problem.queries = rows_from("Index.search", "queries", queries, kernels);
        check_same_dim("Index.search", "queries", problem.queries.dim(), "the index",
                       index_->rows().dim());
        problem.k = k;
        problem.exclude = exclude_from("Index.search", exclude, problem.queries.n_rows(),
                                       index_->rows().n_rows());
        problem.n_threads = threads;
        problem.block_queries = block_queries;
        problem.block_docs = block_docs;
        return run_search(problem, kernels);
    }

    size_t n_docs() const {
        const auto lock = shared_lock();
        return index_->rows().n_rows();
    }

    size_t n_chunks() const { return index_->packed() ? index_->packed()->n_chunks() : 0; }
    size_t chunk_docs() const { return index_->packed() ? index_->packed()->chunk_docs() : 0; }
    std::vector<float> mean() const {
        return index_->packed() ? index_->packed()->mean() : std::vector<float>();
    }

    // The bytes of a chunk as a file has them, and their hash.
    py::tuple chunk(size_t i) const {
        const ops::PackedDocs& packed = *index_->packed();
        py::array_t<uint8_t> bytes(static_cast<py::ssize_t>(packed.chunk_bytes(i)));
        uint8_t* out = bytes.mutable_data();
        packed.write_chunk(i, out);
        return py::make_tuple(bytes, ops::PackedDocs::hash_of(out, packed.chunk_bytes(i)));
    }

    py::list pieces() const { return py::cast(pieces_); }

  private:
    // The GIL is given up while waiting: an addition that holds the lock may want it.
    std::shared_lock<std::shared_mutex> shared_lock() const {
        const py::gil_scoped_release release;
        return std::shared_lock(mutex_);
    }

    static void attach(ops::PackedDocs& docs, const py::array_t<uint8_t>& bytes, size_t n_docs,
                       const std::vector<uint64_t>& hashes) {
        const size_t stride = ops::Quantizer::stride_for(docs.mean().size());
        size_t offset = 0;
        for (const uint64_t hash : hashes) {
            const size_t count = std::min(docs.chunk_docs(), n_docs - docs.n_docs());
            const size_t capacity = ops::QuantizedDocs::capacity_for(count);
            const size_t n_bytes = ops::QuantizedDocs::bytes_for(capacity, stride);
            if (offset + n_bytes > static_cast<size_t>(bytes.size())) break;
            docs.attach(bytes.data() + offset, count, hash);
            offset += n_bytes;
        }
        if (docs.n_docs() != n_docs || offset != static_cast<size_t>(bytes.size())) {
            throw ArtifactError("Index: the packed documents are " + std::to_string(bytes.size()) +
                                " bytes, which does not fit " + std::to_string(n_docs) +
                                " documents; save the index again");
        }
    }

    std::unique_ptr<ops::Index> index_;
    std::vector<py::object> pieces_;
    py::object packed_file_;
    mutable std::shared_mutex mutex_;
};

}  // namespace

void register_index(py::module_& m) {
    py::class_<PyIndex>(m, "Index")
        .def(py::init<size_t, const std::string&, size_t>(), py::arg("dim"), py::arg("metric"),
             py::kw_only(), py::arg("chunk_docs") = 0)
        .def_static("open", &PyIndex::open, py::arg("rows"), py::arg("metric"), py::arg("packed"),
                    py::arg("mean"), py::arg("chunk_docs"), py::arg("hashes"))
        .def("add", &PyIndex::add, py::arg("docs"), py::arg("threads"))
        .def("search", &PyIndex::search, py::arg("queries"), py::arg("k"), py::arg("exclude"),
             py::arg("threads"), py::arg("begin"), py::arg("end"), py::kw_only(),
             py::arg("block_queries") = 0, py::arg("block_docs") = 0)
        .def("n_docs", &PyIndex::n_docs)
        .def("n_chunks", &PyIndex::n_chunks)
        .def("chunk_docs", &PyIndex::chunk_docs)
        .def("mean", &PyIndex::mean)
        .def("chunk", &PyIndex::chunk, py::arg("i"))
        .def("pieces", &PyIndex::pieces);
}

}  // namespace gplfast::bindings
