/* Recorded traces through the simulator. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_SIMULATE_TRACE_H
#define SWITCHYARD_DAEMON_SIMULATE_TRACE_H

#include "daemon/simulate.h"

struct sim_trace_row {
    uint64_t arrival_ns;
    uint32_t prompt, output, rank; /* rank from 0 */
};
struct sim_trace {
    struct sim_trace_row *rows;
    size_t count;
    uint32_t experts; /* one more than the largest rank */
};
/* CSV with a header that names at least arrival_ms, prompt_tokens, output_tokens and expert_rank (from
 * 1), in any order; sorted by time. Errors name line and column. */
enum err_code sim_trace_load(const char *path, struct sim_trace *ret, struct err *e) BASE_NODISCARD;
enum err_code sim_trace_parse(const char *text, size_t len, const char *shown, struct sim_trace *ret,
                              struct err *e) BASE_NODISCARD;
void sim_trace_done(struct sim_trace *t);

struct sim_trace_options {
    uint32_t experts;  /* ranks are mapped onto so many, modulo; 0 = all of the trace */
    uint32_t context;  /* longer prompts are cut, and counted; 0 = never */
    uint32_t repeat;   /* the trace so many times, one after the other */
    double speed;      /* arrivals come so many times faster */
};
struct sim_trace_result {
    struct sim_totals totals;
    double miss_ratio, belady_ratio, bytes_per_request; /* per request; misses are loads */
    double stall_ms_p50, stall_ms_p99; /* waiting for weights */
    double wait_ms_p50, wait_ms_p99;   /* waiting for a lane */
    double ttft_ms_p50, ttft_ms_p99;   /* from arrival to the first token */
    double node_s;                     /* until the last token */
    size_t clipped;
};
/* `opt->experts` is set from the trace. */
enum err_code sim_trace_run(const struct sim_trace *t, const struct sim_trace_options *how,
                            const struct sim_options *opt, struct sim_trace_result *ret, struct err *e)
    BASE_NODISCARD;
/* A transformer of about that many bytes, of `bits` per weight. */
struct rdu_shape sim_shape_of_bytes(uint64_t bytes, double bits);

/* Policies over sizes of the pool. */
enum { POOL_POINTS = 12, POOL_POLICIES = 3 };
extern const char *const sim_policies[POOL_POLICIES];
struct sim_pool_sweep {
    double share[POOL_POINTS]; /* of all experts' bytes */
    uint64_t hbm_bytes[POOL_POINTS];
    struct sim_trace_result at[POOL_POLICIES][POOL_POINTS];
    size_t count;
};
enum err_code sim_pool_sweep(const struct sim_trace *t, const struct sim_trace_options *how,
                             const struct sim_options *opt, struct sim_pool_sweep *ret, struct err *e)
    BASE_NODISCARD;
void sim_pool_csv(const struct sim_pool_sweep *s, struct buf *out);
void sim_pool_svg(const struct sim_pool_sweep *s, const char *title, struct buf *out);

#endif
