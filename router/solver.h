/* router/solver: multinomial logistic regression on sparse rows. Private to router/.
 *
 * Deterministic whatever the number of threads: every output element is computed by one thread in
 * one fixed order of adds. That is why the matrix is kept twice, by row for the scores and by
 * column for the gradient, and why nothing is summed across threads. (OpenBLAS would be no faster
 * on rows this sparse, and its sums depend on its kernels and its thread count.) */
#ifndef SWITCHYARD_ROUTER_SOLVER_H
#define SWITCHYARD_ROUTER_SOLVER_H

#include "base/base.h"

struct sparse_entry {
    uint32_t idx; /* column in the row-wise copy, row in the column-wise one */
    float value;
};
/* rows x cols; entries of row r are by_row[row_start[r] .. row_start[r + 1]). */
struct sparse {
    size_t rows, cols;
    size_t *row_start, *col_start; /* [rows + 1], [cols + 1] */
    struct sparse_entry *by_row, *by_col;
};
/* Fill col_start and by_col from the row-wise half. */
void sparse_transpose(struct sparse *m);
void sparse_done(struct sparse *m);

struct softmax_problem {
    const struct sparse *x;
    const uint32_t *label; /* [rows] */
    const float *weight;   /* [rows] >= 0 */
    size_t labels;
    double l2; /* of the mean loss: objective = sum(w * loss) / sum(w) + l2 / 2 * |W|^2 */
    uint32_t iterations_max;
    unsigned threads;
};
struct softmax_fit {
    float *weights; /* [cols, stride] row-major, columns beyond `labels` are zero; caller frees */
    float *bias;    /* [stride]; not regularised; points into the same allocation */
    size_t stride;
    uint32_t iterations;
    double objective;
};
/* L-BFGS (Liu and Nocedal 1989) with backtracking. ERR_CANCELLED if progress says so. */
enum err_code softmax_solve(const struct softmax_problem *p, const struct progress *progress,
                            struct softmax_fit *ret, struct err *e) BASE_NODISCARD;

/* Run fn(ctx, chunk) for every chunk in [0, chunks) on up to `threads` threads; chunks must write
 * to disjoint memory. */
typedef void parallel_fn(void *ctx, size_t chunk);
void parallel_run(unsigned threads, size_t chunks, parallel_fn *fn, void *ctx);

#endif
