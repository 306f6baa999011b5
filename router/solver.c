/* L-BFGS over single-precision parameters with double-precision sums. */
#include "router/solver.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HISTORY 8 /* pairs of steps that L-BFGS remembers */
#define ROWS_PER_CHUNK 256
#define COLS_PER_CHUNK 512
#define ELEMS_PER_CHUNK 65536
#define THREADS_MAX 64
#define GRADIENT_SMALL 2e-4 /* relative to the first gradient: scores no longer change visibly */

/* ---- threads
 * -------------------------------------------------------------------------------------- */

struct team_member {
    parallel_fn *fn;
    void *ctx;
    size_t first, step, chunks;
};

static void *team_main(void *arg)
{
    const struct team_member *m = arg;
    for (size_t chunk = m->first; chunk < m->chunks; chunk += m->step)
        m->fn(m->ctx, chunk);
    return NULL;
}

void parallel_run(unsigned threads, size_t chunks, parallel_fn *fn, void *ctx)
{
    struct team_member members[THREADS_MAX];
    pthread_t ids[THREADS_MAX];
    bool started[THREADS_MAX] = {false};
    size_t team = BASE_MIN(BASE_MIN((size_t)threads, chunks), (size_t)THREADS_MAX);
    team = BASE_MAX(team, (size_t)1);
    for (size_t i = 0; i < team; i++) {
        members[i] = (struct team_member){fn, ctx, i, team, chunks};
        /* A thread that cannot start costs time only: its share is done below. */
        if (i > 0)
            started[i] =
                thread_start(&ids[i], "route-train", team_main, &members[i], NULL) == ERR_OK;
    }
    for (size_t i = 0; i < team; i++)
        if (!started[i])
            team_main(&members[i]);
    for (size_t i = 0; i < team; i++)
        if (started[i])
            thread_join(ids[i]);
}

/* ---- matrix
 * --------------------------------------------------------------------------------------- */

void sparse_transpose(struct sparse *m)
{
    size_t entries = m->row_start[m->rows];
    m->col_start = mem_array(m->cols + 1, sizeof(*m->col_start));
    m->by_col = mem_array(entries + 1, sizeof(*m->by_col));
    for (size_t i = 0; i < entries; i++)
        m->col_start[m->by_row[i].idx + 1]++;
    for (size_t c = 0; c < m->cols; c++)
        m->col_start[c + 1] += m->col_start[c];
    size_t *at = mem_array(m->cols + 1, sizeof(*at));
    memcpy(at, m->col_start, (m->cols + 1) * sizeof(*at));
    for (size_t r = 0; r < m->rows; r++)
        for (size_t i = m->row_start[r]; i < m->row_start[r + 1]; i++)
            m->by_col[at[m->by_row[i].idx]++] =
                (struct sparse_entry){.idx = (uint32_t)r, .value = m->by_row[i].value};
    free(at);
}

void sparse_done(struct sparse *m)
{
    free(m->row_start);
    free(m->col_start);
    free(m->by_row);
    free(m->by_col);
    *m = (struct sparse){0};
}

/* ---- objective and gradient
 * ------------------------------------------------------------------------- */

struct pass {
    const struct softmax_problem *p;
    size_t stride, params;
    double weight_sum;
    float *residual;  /* [rows, stride]: weight * (probability - truth) / weight_sum */
    double *row_loss; /* [rows] */
    double *partial;  /* [chunks] of a vector sum */
    /* operands of the running parallel region */
    const float *a, *b;
    float *out;
    float factor;
};

static inline void add_scaled(float *restrict sum, const float *restrict row, size_t stride,
                              float factor)
{
    for (size_t i = 0; i < stride; i++)
        sum[i] += factor * row[i];
}

/* Turn logits into the residual in place; returns the loss. */
static double softmax_residual(float *z, size_t labels, uint32_t truth, float weight)
{
    float top = z[0];
    for (size_t i = 1; i < labels; i++)
        top = BASE_MAX(top, z[i]);
    double sum = 0.0, truth_z = (double)z[truth] - (double)top;
    for (size_t i = 0; i < labels; i++) {
        z[i] = expf(z[i] - top);
        sum += (double)z[i];
    }
    float inverse = (float)(1.0 / sum);
    for (size_t i = 0; i < labels; i++)
        z[i] = weight * (z[i] * inverse - (i == truth ? 1.0f : 0.0f));
    return log(sum) - truth_z;
}

static void score_rows(void *ctx, size_t chunk)
{
    struct pass *s = ctx;
    const struct softmax_problem *p = s->p;
    const float *bias = s->a + p->x->cols * s->stride;
    size_t end = BASE_MIN((chunk + 1) * ROWS_PER_CHUNK, p->x->rows);
    for (size_t r = chunk * ROWS_PER_CHUNK; r < end; r++) {
        float *z = s->residual + r * s->stride;
        memcpy(z, bias, s->stride * sizeof(*z));
        for (size_t i = p->x->row_start[r]; i < p->x->row_start[r + 1]; i++) {
            const struct sparse_entry *entry = &p->x->by_row[i];
            add_scaled(z, s->a + (size_t)entry->idx * s->stride, s->stride, entry->value);
        }
        float weight = (float)((double)p->weight[r] / s->weight_sum);
        s->row_loss[r] = (double)weight * softmax_residual(z, p->labels, p->label[r], weight);
        for (size_t i = p->labels; i < s->stride; i++)
            z[i] = 0.0f;
    }
}

static void gradient_cols(void *ctx, size_t chunk)
{
    struct pass *s = ctx;
    const struct sparse *x = s->p->x;
    float l2 = (float)s->p->l2;
    size_t end = BASE_MIN((chunk + 1) * COLS_PER_CHUNK, x->cols);
    for (size_t c = chunk * COLS_PER_CHUNK; c < end; c++) {
        float *g = s->out + c * s->stride;
        for (size_t i = 0; i < s->stride; i++)
            g[i] = l2 * s->a[c * s->stride + i];
        for (size_t i = x->col_start[c]; i < x->col_start[c + 1]; i++)
            add_scaled(g, s->residual + (size_t)x->by_col[i].idx * s->stride, s->stride,
                       x->by_col[i].value);
    }
}

static void dot_chunk(void *ctx, size_t chunk)
{
    struct pass *s = ctx;
    size_t begin = chunk * ELEMS_PER_CHUNK, end = BASE_MIN(begin + ELEMS_PER_CHUNK, s->params);
    double sum[4] = {0.0};
    size_t i = begin;
    for (; i + 4 <= end; i += 4)
        for (size_t j = 0; j < 4; j++)
            sum[j] += (double)s->a[i + j] * (double)s->b[i + j];
    for (; i < end; i++)
        sum[0] += (double)s->a[i] * (double)s->b[i];
    s->partial[chunk] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static void add_chunk(void *ctx, size_t chunk)
{
    struct pass *s = ctx;
    size_t begin = chunk * ELEMS_PER_CHUNK, end = BASE_MIN(begin + ELEMS_PER_CHUNK, s->params);
    for (size_t i = begin; i < end; i++)
        s->out[i] = s->a[i] + s->factor * s->b[i];
}

static size_t chunks_of(size_t count, size_t size)
{
    return (count + size - 1) / size;
}

static double vec_dot(struct pass *s, const float *a, const float *b)
{
    size_t chunks = chunks_of(s->params, ELEMS_PER_CHUNK);
    s->a = a;
    s->b = b;
    parallel_run(s->p->threads, chunks, dot_chunk, s);
    double sum = 0.0;
    for (size_t i = 0; i < chunks; i++)
        sum += s->partial[i];
    return sum;
}

/* out = a + factor * b; out may be a. */
static void vec_add(struct pass *s, float *out, const float *a, double factor, const float *b)
{
    s->out = out;
    s->a = a;
    s->b = b;
    s->factor = (float)factor;
    parallel_run(s->p->threads, chunks_of(s->params, ELEMS_PER_CHUNK), add_chunk, s);
}

/* Objective at `w`; its gradient into `g`. */
static double evaluate(struct pass *s, const float *w, float *g)
{
    const struct sparse *x = s->p->x;
    size_t bias_at = x->cols * s->stride;
    s->a = w;
    s->out = g;
    parallel_run(s->p->threads, chunks_of(x->rows, ROWS_PER_CHUNK), score_rows, s);
    parallel_run(s->p->threads, chunks_of(x->cols, COLS_PER_CHUNK), gradient_cols, s);
    double loss = 0.0;
    for (size_t r = 0; r < x->rows; r++)
        loss += s->row_loss[r];
    for (size_t i = 0; i < s->stride; i++) {
        double sum = 0.0;
        for (size_t r = 0; r < x->rows; r++)
            sum += (double)s->residual[r * s->stride + i];
        g[bias_at + i] = (float)sum;
    }
    double norm = vec_dot(s, w, w);
    for (size_t i = 0; i < s->stride; i++)
        norm -= (double)w[bias_at + i] * (double)w[bias_at + i];
    return loss + 0.5 * s->p->l2 * norm;
}

/* ---- L-BFGS
 * ---------------------------------------------------------------------------------------- */

struct lbfgs {
    float *w, *g, *w_next, *g_next, *direction;
    float *steps[HISTORY], *changes[HISTORY]; /* differences of w and of g */
    double rho[HISTORY];                      /* 1 / (step . change) */
    size_t pairs, newest;
};

static size_t pair_idx(const struct lbfgs *l, size_t age)
{
    return (l->newest + HISTORY - age) % HISTORY;
}

/* direction = -H * g by the two-loop recursion. */
static void find_direction(struct pass *s, struct lbfgs *l)
{
    double alpha[HISTORY], scale = 1.0;
    memcpy(l->direction, l->g, s->params * sizeof(float));
    for (size_t age = 0; age < l->pairs; age++) {
        size_t i = pair_idx(l, age);
        alpha[i] = l->rho[i] * vec_dot(s, l->steps[i], l->direction);
        vec_add(s, l->direction, l->direction, -alpha[i], l->changes[i]);
    }
    if (l->pairs > 0) {
        const float *change = l->changes[l->newest];
        scale = 1.0 / (l->rho[l->newest] * vec_dot(s, change, change));
    }
    vec_add(s, l->direction, l->direction, scale - 1.0, l->direction);
    for (size_t age = l->pairs; age-- > 0;) {
        size_t i = pair_idx(l, age);
        double beta = l->rho[i] * vec_dot(s, l->changes[i], l->direction);
        vec_add(s, l->direction, l->direction, alpha[i] - beta, l->steps[i]);
    }
    vec_add(s, l->direction, l->direction, -2.0, l->direction);
}

/* Backtrack until the objective falls enough (Armijo); returns the new objective, NAN if it never
 * did. */
static double line_search(struct pass *s, struct lbfgs *l, double objective, double slope)
{
    double length = l->pairs > 0 ? 1.0 : BASE_MIN(1.0, 1.0 / sqrt(-slope));
    for (int attempt = 0; attempt < 30; attempt++) {
        vec_add(s, l->w_next, l->w, length, l->direction);
        double next = evaluate(s, l->w_next, l->g_next);
        if (next <= objective + 1e-4 * length * slope)
            return next;
        length *= 0.5;
    }
    return (double)NAN;
}

static void remember_step(struct pass *s, struct lbfgs *l)
{
    size_t i = l->pairs > 0 ? (l->newest + 1) % HISTORY : 0;
    vec_add(s, l->steps[i], l->w_next, -1.0, l->w);
    vec_add(s, l->changes[i], l->g_next, -1.0, l->g);
    double product = vec_dot(s, l->steps[i], l->changes[i]);
    /* Without curvature the pair would make the next direction point uphill: forget the history. */
    l->rho[i] = product > 1e-12 ? 1.0 / product : 0.0;
    l->pairs = product > 1e-12 ? BASE_MIN(l->pairs + 1, (size_t)HISTORY) : 0;
    l->newest = i;
    float *old_w = l->w, *old_g = l->g;
    l->w = l->w_next;
    l->g = l->g_next;
    l->w_next = old_w;
    l->g_next = old_g;
}

static enum err_code iterate(struct pass *s, struct lbfgs *l, const struct progress *progress,
                             struct softmax_fit *fit, struct err *e)
{
    double objective = evaluate(s, l->w, l->g);
    double first = sqrt(vec_dot(s, l->g, l->g));
    uint32_t most = s->p->iterations_max;
    for (fit->iterations = 0; fit->iterations < most; fit->iterations++) {
        if (!progress_report(progress, "training", fit->iterations, most))
            return err_set(e, ERR_CANCELLED, "training was cancelled");
        if (sqrt(vec_dot(s, l->g, l->g)) <= GRADIENT_SMALL * first)
            break;
        find_direction(s, l);
        double slope = vec_dot(s, l->g, l->direction);
        double next = slope < 0.0 ? line_search(s, l, objective, slope) : (double)NAN;
        if (isnan(next) && l->pairs == 0)
            break;
        if (isnan(next)) {
            l->pairs = 0; /* the history misleads: start again from the plain gradient */
            continue;
        }
        remember_step(s, l);
        objective = next;
    }
    fit->objective = objective;
    return progress_report(progress, "training", most, most)
               ? ERR_OK
               : err_set(e, ERR_CANCELLED, "training was cancelled");
}

static void lbfgs_init(struct lbfgs *l, size_t params)
{
    float **vectors[] = {&l->w, &l->g, &l->w_next, &l->g_next, &l->direction};
    for (size_t i = 0; i < BASE_COUNT(vectors); i++)
        *vectors[i] = mem_array(params, sizeof(float));
    for (size_t i = 0; i < HISTORY; i++) {
        l->steps[i] = mem_array(params, sizeof(float));
        l->changes[i] = mem_array(params, sizeof(float));
    }
}

static void lbfgs_done(struct lbfgs *l)
{
    free(l->w);
    free(l->g);
    free(l->w_next);
    free(l->g_next);
    free(l->direction);
    for (size_t i = 0; i < HISTORY; i++) {
        free(l->steps[i]);
        free(l->changes[i]);
    }
}

enum err_code softmax_solve(const struct softmax_problem *p, const struct progress *progress,
                            struct softmax_fit *ret, struct err *e)
{
    size_t stride = (p->labels + 7) / 8 * 8; /* whole vectors in the inner loops */
    struct pass s = {.p = p, .stride = stride, .params = (p->x->cols + 1) * stride};
    for (size_t r = 0; r < p->x->rows; r++)
        s.weight_sum += (double)p->weight[r];
    if (s.weight_sum <= 0.0)
        return err_set(e, ERR_INVALID, "training needs at least one row with a weight above 0");
    s.residual = mem_array(p->x->rows * stride, sizeof(float));
    s.row_loss = mem_array(p->x->rows, sizeof(double));
    s.partial = mem_array(chunks_of(s.params, ELEMS_PER_CHUNK), sizeof(double));
    struct lbfgs l = {0};
    lbfgs_init(&l, s.params);

    struct softmax_fit fit = {.stride = stride};
    enum err_code code = iterate(&s, &l, progress, &fit, e);
    if (code == ERR_OK) {
        fit.weights = l.w;
        fit.bias = l.w + p->x->cols * stride;
        l.w = NULL;
        *ret = fit;
    }
    lbfgs_done(&l);
    free(s.residual);
    free(s.row_loss);
    free(s.partial);
    return code;
}
