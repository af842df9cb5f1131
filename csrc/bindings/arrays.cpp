#include "bindings/arrays.h"

#include <cstdint>

#include "common/errors.h"

namespace py = pybind11;

namespace gplfast::bindings {
namespace {

std::string type_name(const py::handle& object) {
    return py::str(py::type::of(object).attr("__module__")).cast<std::string>() + "." +
           py::str(py::type::of(object).attr("__qualname__")).cast<std::string>();
}

std::string shape_text(const py::array& array) {
    return py::str(array.attr("shape")).cast<std::string>();
}

// A C-contiguous, aligned array in native byte order, of `type` (named `dtype`) or, when that is
// allowed, of float16.
py::array checked_array(const char* op, const std::string& name, const py::handle& object,
                        py::ssize_t n_dims, const py::dtype& type, const char* dtype,
                        bool may_be_float16 = false) {
    const std::string remedy = "np.ascontiguousarray(" + name + ", np." + dtype + ")";
    const std::string where = std::string(op) + ": " + name;
    if (!py::isinstance<py::array>(object)) {
        throw DTypeError(where + " is a " + type_name(object) +
                         " but a numpy array is needed; call " + remedy);
    }
    auto array = py::reinterpret_borrow<py::array>(object);
    if (!array.dtype().equal(type) &&
        !(may_be_float16 && array.dtype().equal(py::dtype("float16")))) {
        throw DTypeError(where + " has dtype " + py::str(array.dtype()).cast<std::string>() +
                         " but " + dtype + (may_be_float16 ? " or float16" : "") +
                         " is needed; call " + remedy);
    }
    if (array.ndim() != n_dims) {
        throw ShapeError(where + " has shape " + shape_text(array) + " but " +
                         std::to_string(n_dims) + " dimension" + (n_dims == 1 ? " is" : "s are") +
                         " needed; reshape it");
    }
    constexpr int needed = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
    if ((array.flags() & needed) != needed) {
        throw DTypeError(where + " is not C-contiguous and aligned; call " + remedy);
    }
    return array;
}

template <class T>
py::array array_from(const char* op, const std::string& name, const py::handle& object,
                     py::ssize_t n_dims, const char* dtype) {
    return checked_array(op, name, object, n_dims, py::dtype::of<T>(), dtype);
}

// Offsets of n_lists ragged lists over n_values values: from 0, never falling, to n_values.
void check_indptr(const std::string& where, const int64_t* indptr, size_t n_lists,
                  size_t n_values) {
    if (indptr[0] != 0) {
        throw ShapeError(where + " starts at " + std::to_string(indptr[0]) +
                         " but must start at 0");
    }
    for (size_t i = 0; i < n_lists; ++i) {
        if (indptr[i + 1] < indptr[i]) {
            throw ShapeError(where + " falls from " + std::to_string(indptr[i]) + " to " +
                             std::to_string(indptr[i + 1]) + " at list " + std::to_string(i) +
                             "; offsets never fall");
        }
    }
    if (static_cast<size_t>(indptr[n_lists]) != n_values) {
        throw ShapeError(where + " ends at " + std::to_string(indptr[n_lists]) + " but there are " +
                         std::to_string(n_values) + " values; it must end at their number");
    }
}

// `of_list` says whose ids they are, before the list's number.
void check_ids(const std::string& of_list, const int64_t* indptr, const int64_t* ids,
               size_t n_lists, size_t n_docs) {
    for (size_t list = 0; list < n_lists; ++list) {
        for (int64_t i = indptr[list]; i < indptr[list + 1]; ++i) {
            if (ids[i] >= 0 && static_cast<uint64_t>(ids[i]) < n_docs) continue;
            throw ShapeError(of_list + std::to_string(list) + " has id " + std::to_string(ids[i]) +
                             " but docs has " + std::to_string(n_docs) +
                             " rows; ids count rows from 0");
        }
    }
}

}  // namespace

RowSource rows_from(const char* op, const char* name, const py::handle& object,
                    const cpu::KernelSet& kernels) {
    const py::array array =
        checked_array(op, name, object, 2, py::dtype::of<float>(), "float32", true);
    if (array.shape(1) == 0) {
        throw ShapeError(std::string(op) + ": " + name + " has shape " + shape_text(array) +
                         " but needs at least one column");
    }
    const bool is_float32 = array.itemsize() == sizeof(float);
    RowSource rows(static_cast<size_t>(array.shape(1)),
                   is_float32 ? ElementType::float32 : ElementType::float16, kernels.floats->widen);
    rows.add(array.data(), static_cast<size_t>(array.shape(0)));
    return rows;
}

void check_same_dim(const char* op, const char* name, size_t dim, const char* other,
                    size_t other_dim) {
    if (dim == other_dim) return;
    throw ShapeError(std::string(op) + ": " + name + " has dim=" + std::to_string(dim) + " but " +
                     other + " has dim=" + std::to_string(other_dim) +
                     "; encode both with the same model");
}

ops::ExcludeView exclude_from(const char* op, const py::object& exclude, size_t n_queries,
                              size_t n_docs) {
    if (exclude.is_none()) return {};
    const auto pair = py::reinterpret_borrow<py::tuple>(exclude);
    const py::array indptr_array = array_from<int64_t>(op, "exclude[0]", pair[0], 1, "int64");
    const py::array ids_array = array_from<int64_t>(op, "exclude[1]", pair[1], 1, "int64");
    const auto* indptr = static_cast<const int64_t*>(indptr_array.data());
    const auto* ids = static_cast<const int64_t*>(ids_array.data());
    if (indptr_array.size() == 0) {
        throw ShapeError(std::string(op) +
                         ": exclude[0] is empty but needs one more entry than there are queries");
    }
    if (static_cast<size_t>(indptr_array.size()) != n_queries + 1) {
        throw ShapeError(std::string(op) + ": exclude names " +
                         std::to_string(indptr_array.size() - 1) + " queries but queries has " +
                         std::to_string(n_queries) + " rows; give one list per query");
    }
    check_indptr(std::string(op) + ": exclude[0]", indptr, n_queries,
                 static_cast<size_t>(ids_array.size()));
    check_ids(std::string(op) + ": exclude of query ", indptr, ids, n_queries, n_docs);
    return {indptr, ids};
}

Lists lists_from(const char* op, const py::object& lists, size_t n_docs) {
    const auto pair = py::reinterpret_borrow<py::tuple>(lists);
    const py::array indptr_array = array_from<int64_t>(op, "lists[0]", pair[0], 1, "int64");
    const py::array ids_array = array_from<int64_t>(op, "lists[1]", pair[1], 1, "int64");
    const auto* indptr = static_cast<const int64_t*>(indptr_array.data());
    const auto* ids = static_cast<const int64_t*>(ids_array.data());
    if (indptr_array.size() == 0) {
        throw ShapeError(std::string(op) +
                         ": lists[0] is empty but needs one more entry than there are lists");
    }
    const auto n_lists = static_cast<size_t>(indptr_array.size()) - 1;
    check_indptr(std::string(op) + ": lists[0]", indptr, n_lists,
                 static_cast<size_t>(ids_array.size()));
    check_ids(std::string(op) + ": list ", indptr, ids, n_lists, n_docs);
    return {indptr, ids, n_lists};
}

ops::RaggedScores ragged_from(const char* op, const char* name, const py::handle& scores,
                              const py::handle& indptr, size_t& n_queries) {
    const std::string prefix(name);
    const py::array score_array = array_from<float>(op, prefix + "_scores", scores, 1, "float32");
    const py::array indptr_array = array_from<int64_t>(op, prefix + "_indptr", indptr, 1, "int64");
    const auto* offsets = static_cast<const int64_t*>(indptr_array.data());
    if (indptr_array.size() == 0) {
        throw ShapeError(std::string(op) + ": " + prefix +
                         "_indptr is empty but needs one more entry than there are queries");
    }
    n_queries = static_cast<size_t>(indptr_array.size()) - 1;
    check_indptr(std::string(op) + ": " + prefix + "_indptr", offsets, n_queries,
                 static_cast<size_t>(score_array.size()));
    return {static_cast<const float*>(score_array.data()), offsets};
}

const int64_t* groups_from(const char* op, const char* name, const py::object& groups, size_t n) {
    if (groups.is_none()) return nullptr;
    const py::array array = array_from<int64_t>(op, name, groups, 1, "int64");
    if (static_cast<size_t>(array.size()) != n) {
        throw ShapeError(std::string(op) + ": " + name + " has " + std::to_string(array.size()) +
                         " entries but there are " + std::to_string(n) +
                         " scores; give each its document's group");
    }
    return static_cast<const int64_t*>(array.data());
}

void check_margins(const ops::RaggedScores& positives, size_t n_positive_queries,
                   const ops::RaggedScores& negatives, size_t n_negative_queries) {
    if (n_positive_queries != n_negative_queries) {
        throw ShapeError("margins: positive_indptr has " + std::to_string(n_positive_queries) +
                         " queries but negative_indptr has " + std::to_string(n_negative_queries) +
                         "; give a list, maybe empty, for each query in both");
    }
    for (size_t query = 0; query < n_negative_queries; ++query) {
        const int64_t n_negatives = negatives.indptr[query + 1] - negatives.indptr[query];
        if (n_negatives == 0 || positives.indptr[query + 1] > positives.indptr[query]) continue;
        throw ShapeError("margins: query " + std::to_string(query) + " has " +
                         std::to_string(n_negatives) +
                         " negatives but no positive; drop its negatives or score a positive");
    }
}

}  // namespace gplfast::bindings
