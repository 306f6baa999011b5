/* The latency histogram: log-linear buckets, constant memory, no allocation on the way in.
 *
 * Bucket p * 8 + s holds the values v with 2^p <= v < 2^(p+1) and floor((v - 2^p) * 8 / 2^p) == s.
 * Below 8 ns some buckets hold no integer and stay empty; that is cheaper than a special case. */
#include "base/base.h"

enum { SUB_BITS = 3, SUB = 1 << SUB_BITS, POWERS = HIST_BUCKETS / SUB };

static size_t bucket_of(uint64_t ns)
{
    if (ns == 0)
        ns = 1;
    unsigned power = 63 - (unsigned)__builtin_clzll(ns);
    if (power >= POWERS)
        return HIST_BUCKETS - 1;
    uint64_t rest = ns - ((uint64_t)1 << power);
    return (size_t)power * SUB + (size_t)((rest << SUB_BITS) >> power);
}

/* Largest integer in the bucket; the last bucket has no upper edge. */
static uint64_t upper_edge(size_t bucket)
{
    if (bucket == HIST_BUCKETS - 1)
        return UINT64_MAX;
    unsigned power = (unsigned)(bucket / SUB);
    uint64_t base = (uint64_t)1 << power;
    uint64_t eighths = (bucket % SUB + 1) << power;
    return base + (eighths + SUB - 1) / SUB - 1;
}

void hist_add(struct hist *h, uint64_t ns)
{
    h->bucket[bucket_of(ns)]++;
    h->count++;
    h->sum_ns += ns;
    if (ns > h->max_ns)
        h->max_ns = ns;
}

uint64_t hist_quantile(const struct hist *h, double q)
{
    uint64_t count = h->count;
    if (count == 0)
        return 0;
    /* The smallest sample with at least q * count samples at or below it. */
    double want = q * (double)count;
    uint64_t rank = want <= 1 ? 1 : want >= (double)count ? count : (uint64_t)want;
    if ((double)rank < want && rank < count)
        rank++;
    uint64_t seen = 0;
    for (size_t i = 0; i < HIST_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen >= rank)
            return BASE_MIN(upper_edge(i), h->max_ns); /* no sample is above the maximum */
    }
    return h->max_ns; /* a torn read: the buckets lag behind the count */
}

uint64_t hist_count_below(const struct hist *h, uint64_t ns)
{
    if (ns >= h->max_ns)
        return h->count;
    uint64_t seen = 0;
    for (size_t i = 0; i < HIST_BUCKETS && upper_edge(i) <= ns; i++)
        seen += h->bucket[i];
    return seen;
}
