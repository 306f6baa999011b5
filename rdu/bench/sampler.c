/* A sampler chain over one row of logits as a user expression: penalty for what was said,
 * temperature, a mask, softmax, min-p, and the renormalised rest. Unfused is one operation after
 * the other over whole columns. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/bench/ablation.h"
#include "rdu/expr/expr.h"

static const char chain[] =
    "let penalised = where(said, where(logits > 0, logits / penalty, logits * penalty), logits);\n"
    "let z = where(banned, -inf, (penalised + bias) / temperature);\n"
    "let m = max(z);\n"
    "let p = exp(z - m);\n"
    "let kept = where(p < min_p, 0.0, p);\n"
    "kept / sum(kept)\n";

enum { LOGITS, BIAS, SAID, BANNED, PENALTY, TEMPERATURE, MIN_P, FIELDS };
static const struct rdu_expr_field fields[FIELDS] = {
    {"logits", RDU_EXPR_F32, true},   {"bias", RDU_EXPR_F32, true},
    {"said", RDU_EXPR_BOOL, true},    {"banned", RDU_EXPR_BOOL, true},
    {"penalty", RDU_EXPR_F32, false}, {"temperature", RDU_EXPR_F32, false},
    {"min_p", RDU_EXPR_F32, false}};
static const struct rdu_expr_spec chain_spec = {fields, FIELDS, RDU_EXPR_F32};

struct sampler_work {
    struct rdu_expr *expr, *compiled;
    struct emit_object object;
    struct rdu_expr_scratch *scratch;
    const void *in[FIELDS];
    float *logits, *bias, *out;
    int32_t *said, *banned;
    struct bench_sampler args;
    struct bench_hand hand;
    size_t n;
};

static void sampler_close(void *work)
{
    struct sampler_work *w = work;
    rdu_expr_scratch_close(&w->scratch);
    rdu_expr_close(&w->expr);
    rdu_expr_close(&w->compiled);
    emit_unload(&w->object);
    free(w->logits);
    free(w->bias);
    free(w->said);
    free(w->banned);
    free(w->out);
    free(w);
}

static void sampler_run(void *work, enum rdu_ablation_way way)
{
    struct sampler_work *w = work;
    if (way == RDU_ABLATION_UNFUSED)
        rdu_expr_run_unfused(w->expr, w->in, w->n, w->out);
    else if (way == RDU_ABLATION_FUSED)
        rdu_expr_run(w->expr, w->in, w->n, w->out, w->scratch);
    else if (way == RDU_ABLATION_NATIVE)
        rdu_expr_run(w->compiled, w->in, w->n, w->out, w->scratch);
    else
        w->hand.sampler(&w->args, w->n, w->out);
}

static const void *sampler_result(void *work, enum rdu_ablation_way way, size_t *ret_count)
{
    struct sampler_work *w = work;
    *ret_count = w->n;
    return w->out;
}

static const struct bench_ways sampler_ways = {sampler_run, sampler_result, sampler_close};

static void fill(struct sampler_work *w, uint64_t seed)
{
    struct rng rng;
    rng_init(&rng, seed);
    for (size_t i = 0; i < w->n; i++) {
        uint64_t bits = rng_u64(&rng);
        w->logits[i] = (float)(bits & 0xffff) / 4096.0f - 12.0f;
        w->bias[i] = bits >> 16 & 63 ? 0.0f : 1.5f;
        w->said[i] = (bits >> 24 & 31) == 0;
        w->banned[i] = (bits >> 32 & 63) == 0;
    }
    w->args = (struct bench_sampler){w->logits, w->bias, w->said, w->banned, 1.1f, 0.7f, 0.05f};
}

static void make_native(struct sampler_work *w, struct rdu_ablation *a)
{
    struct buf text = {0};
    struct err e = {0};
    emit_expr(w->compiled, &text);
    if (bench_compile(&text, &w->object, &e) == ERR_OK)
        atomic_store(&w->compiled->native, dlsym(w->object.handle, "sy_expr"));
    else
        bench_without_native(a, &e);
    buf_done(&text);
}

enum err_code bench_sampler_open(const struct rdu_ablation_spec *spec, struct rdu_ablation *a,
                                 struct err *e)
{
    struct sampler_work *w = mem_alloc(sizeof(*w));
    a->ways = &sampler_ways;
    a->work = w;
    a->has[RDU_ABLATION_PLAIN] = false;
    w->n = spec->n;
    w->hand = bench_hand_best();
    w->logits = mem_array(w->n, sizeof(float));
    w->bias = mem_array(w->n, sizeof(float));
    w->out = mem_array(w->n, sizeof(float));
    w->said = mem_array(w->n, sizeof(int32_t));
    w->banned = mem_array(w->n, sizeof(int32_t));
    fill(w, spec->seed);
    const void *in[FIELDS] = {w->logits,     w->bias,          w->said,
                              w->banned,     &w->args.penalty, &w->args.temperature,
                              &w->args.min_p};
    memcpy(w->in, in, sizeof(in));
    w->object.fd = -1;
    enum err_code code = rdu_expr_open(chain, strlen(chain), &chain_spec, &w->expr, e);
    if (code == ERR_OK)
        code = rdu_expr_open(chain, strlen(chain), &chain_spec, &w->compiled, e);
    if (code != ERR_OK)
        return code;
    make_native(w, a);
    w->scratch = rdu_expr_scratch_open(w->expr, w->n);
    rdu_expr_print(w->expr, &a->report);
    return ERR_OK;
}
