// The one order of answers: score descending, then document id ascending. It is total because no
// score is NaN, so lists from any split of the documents merge to the same answer.
#pragma once

#include <cstdint>

namespace gplfast {

struct Hit {
    float score;
    int64_t id;
};

inline bool better(const Hit& a, const Hit& b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

}  // namespace gplfast
