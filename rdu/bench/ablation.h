/* What a workload gives the handle of an ablation. Private to rdu/bench/. */
#ifndef SWITCHYARD_RDU_BENCH_ABLATION_H
#define SWITCHYARD_RDU_BENCH_ABLATION_H

#include "rdu/bench/work.h"
#include "rdu/emit/emit.h"

struct bench_ways {
    void (*run)(void *work, enum rdu_ablation_way way);
    /* What the last run of that way made: f64 if `doubles`, else f32. */
    const void *(*result)(void *work, enum rdu_ablation_way way, size_t *ret_count);
    void (*close)(void *work);
};
struct rdu_ablation {
    const struct bench_ways *ways;
    void *work;
    bool has[RDU_ABLATION_WAYS], doubles;
    struct buf report;
};

/* Blocks for the compiler's run. ERR_UNSUPPORTED: there is none. */
enum err_code bench_compile(const struct buf *text, struct emit_object *ret,
                            struct err *e) BASE_NODISCARD;
/* That there is no native way, and why. Never an error: everything else still runs. */
void bench_without_native(struct rdu_ablation *a, const struct err *why);

/* Each fills ways, work, has; on failure the handle is closed all the same. */
enum err_code bench_layer_open(const struct rdu_ablation_spec *spec, struct rdu_ablation *a,
                               struct err *e) BASE_NODISCARD;
enum err_code bench_sampler_open(const struct rdu_ablation_spec *spec, struct rdu_ablation *a,
                                 struct err *e) BASE_NODISCARD;

#endif
