/* Utility by a user expression over the candidates within the margin. */
#include "router/router.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/rdu.h"

enum { SCORE, LOAD, QUEUE, PREFILL, BYTES, RESIDENT, PLAIN, LAMBDA, MARGIN, BEST, FIELDS };
static const struct rdu_expr_field fields[FIELDS] = {
    [SCORE] = {"score", RDU_EXPR_F32, true},    [LOAD] = {"load_s", RDU_EXPR_F32, true},
    [QUEUE] = {"queue_s", RDU_EXPR_F32, true},  [PREFILL] = {"prefill_s", RDU_EXPR_F32, true},
    [BYTES] = {"bytes", RDU_EXPR_F32, true},    [RESIDENT] = {"resident", RDU_EXPR_BOOL, true},
    [PLAIN] = {"plain", RDU_EXPR_BOOL, true},   [LAMBDA] = {"lambda", RDU_EXPR_F32, false},
    [MARGIN] = {"margin", RDU_EXPR_F32, false}, [BEST] = {"best", RDU_EXPR_F32, false},
};

struct router_policy {
    struct rdu_expr *expr;
    float lambda, margin;
    bool plain;
};

enum err_code router_policy_open(const struct router_policy_options *opt,
                                 struct router_policy **ret, struct err *e)
{
    bool own = opt->expr == NULL || opt->expr[0] == 0;
    const char *text = own ? ROUTER_POLICY_DEFAULT : opt->expr;
    const struct rdu_expr_spec spec = {
        .fields = fields, .fields_count = FIELDS, .result = RDU_EXPR_F32};
    if (!(opt->lambda >= 0.0 && opt->lambda <= 1e6) || !(opt->margin >= 0.0 && opt->margin <= 1.0))
        return err_set(e, ERR_INVALID, "lambda must be 0 or more and margin between 0 and 1");
    struct router_policy *p = mem_alloc(sizeof(*p));
    enum err_code code = rdu_expr_open(text, strlen(text), &spec, &p->expr, e);
    if (code != ERR_OK) {
        free(p);
        return code;
    }
    p->lambda = (float)opt->lambda;
    p->margin = (float)opt->margin;
    p->plain = own && opt->lambda == 0.0;
    *ret = p;
    return ERR_OK;
}

void router_policy_close(struct router_policy **p)
{
    if (!*p)
        return;
    rdu_expr_close(&(*p)->expr);
    free(*p);
    *p = NULL;
}

bool router_policy_is_plain(const struct router_policy *p)
{
    return p->plain;
}

/* The candidates as columns. */
struct columns {
    float f[BYTES + 1][ROUTER_CANDIDATES_MAX];
    int32_t resident[ROUTER_CANDIDATES_MAX], plain[ROUTER_CANDIDATES_MAX];
};

static void fill(struct columns *k, const struct router_candidate *c, size_t count,
                 size_t plain_idx)
{
    for (size_t i = 0; i < count; i++) {
        k->f[SCORE][i] = c[i].score;
        k->f[LOAD][i] = c[i].load_s;
        k->f[QUEUE][i] = c[i].queue_s;
        k->f[PREFILL][i] = c[i].prefill_s;
        k->f[BYTES][i] = c[i].bytes;
        k->resident[i] = c[i].resident;
        k->plain[i] = i == plain_idx;
    }
}

size_t router_choose(const struct router_policy *p, const struct router_candidate *c, size_t count,
                     size_t plain_idx, float *ret_utility)
{
    count = BASE_MIN(count, (size_t)ROUTER_CANDIDATES_MAX);
    if (plain_idx >= count)
        return plain_idx;
    struct columns *k = mem_alloc(sizeof(*k));
    float utility[ROUTER_CANDIDATES_MAX], best = c[plain_idx].score;
    struct rdu_expr_scratch *s = rdu_expr_scratch_open(p->expr, count);
    const void *inputs[FIELDS] = {k->f[SCORE], k->f[LOAD], k->f[QUEUE], k->f[PREFILL], k->f[BYTES],
                                  k->resident, k->plain,   &p->lambda,  &p->margin,    &best};
    fill(k, c, count, plain_idx);
    for (size_t i = 0; i < count; i++)
        best = fmaxf(best, c[i].score);
    rdu_expr_run(p->expr, inputs, count, utility, s);
    rdu_expr_scratch_close(&s);
    free(k);
    size_t winner = plain_idx;
    for (size_t i = 0; i < count; i++) {
        if (i != plain_idx && !(c[i].score >= best - p->margin))
            utility[i] = -INFINITY;
        /* A NaN never wins, and loses its place to a number. */
        if (utility[i] > utility[winner] || (isnan(utility[winner]) && !isnan(utility[i])))
            winner = i;
    }
    for (size_t i = 0; ret_utility && i < count; i++)
        ret_utility[i] = utility[i];
    return winner;
}
