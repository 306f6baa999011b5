/* Workloads that say what fusing is worth: each as a graph, and by hand in C. Private to rdu/. */
#ifndef SWITCHYARD_RDU_BENCH_WORK_H
#define SWITCHYARD_RDU_BENCH_WORK_H

#include "rdu/kernels/kernels.h"
#include "rdu/scan/scan.h"

/* ---- lineitem -------------------------------------------------------------------------------- */

/* One row as TPC-H has it, without the strings; days count from 1992-01-01. */
struct bench_lineitem {
    float quantity, price, discount, tax;
    int32_t ship_day, commit_day, receipt_day, order, part, supplier, line;
    int8_t return_flag, status; /* 0..2 (A, N, R); 0..1 (F, O) */
    int8_t mode, instruct;
    int32_t comment[4];
};
/* The columns the queries read, in this order. */
enum {
    LINE_QUANTITY,
    LINE_PRICE,
    LINE_DISCOUNT,
    LINE_TAX,
    LINE_SHIP_DAY,
    LINE_FLAG,
    LINE_STATUS,
    LINE_COLUMNS
};
enum { Q1_QUANTITY, Q1_PRICE, Q1_DISC_PRICE, Q1_CHARGE, Q1_DISCOUNT, Q1_COUNT, Q1_VALUES };
#define Q1_KEYS 6 /* return_flag * 2 + status */
/* 1994-01-01 up to 1995-01-01; 1998-12-01 less 90 days. Discounts are hundredths, compared halfway.
 */
#define Q6_DAY_FROM 731
#define Q6_DAY_TO 1096
#define Q6_DISCOUNT_FROM 0.045f
#define Q6_DISCOUNT_TO 0.075f
#define Q6_QUANTITY 24.0f
#define Q1_DAY 2436
#define LINE_DAYS 2526

/* As rows or as columns; data [n]. */
struct bench_table {
    size_t n;
    void *memory;
    size_t bytes;
    struct scan_source source[LINE_COLUMNS];
};
void bench_lineitem_fill(struct bench_table *t, size_t n, bool columns, uint64_t seed);
/* x and y of the elementwise chain: two columns, or records of four floats. */
void bench_chain_fill(struct bench_table *t, size_t n, bool columns, uint64_t seed);
void bench_table_done(struct bench_table *t);

/* Each as one would write the operators one after the other. ret_elem: the elem that holds the
 * result. */
struct scan_graph *bench_q6_graph(uint32_t *ret_elem);
struct scan_graph *bench_q1_graph(uint32_t *ret_elem);
struct scan_graph *bench_chain_graph(uint32_t *ret_elem);

/* ---- by hand --------------------------------------------------------------------------------- */

struct bench_sampler {
    const float *logits, *bias;
    const int32_t *said, *banned;
    float penalty, temperature, min_p;
};
/* `lanes`: in the order of rule 13, branch-free, so that a compiler makes vectors of it; `plain`:
 * as one writes it without thinking of vectors, sums in f64. Compiled for the baseline and for
 * AVX2. */
struct bench_hand {
    double (*q6_lanes)(const struct scan_source *c, size_t n);
    double (*q6_plain)(const struct scan_source *c, size_t n);
    void (*q1_lanes)(const struct scan_source *c, size_t n, double *ret);
    void (*q1_plain)(const struct scan_source *c, size_t n, double *ret);
    void (*chain)(const struct scan_source *c, size_t n, float *ret);
    rdu_mm_q8_fn *rows_q8_0; /* rule 6 over Q8_0 rows as files hold them */
    void (*sampler)(const struct bench_sampler *s, size_t n, float *ret);
};
void bench_hand_base(struct bench_hand *ret);
void bench_hand_avx2(struct bench_hand *ret);
struct bench_hand bench_hand_best(void);

#define CHAIN_A 1.25f
#define CHAIN_B 0.5f
#define CHAIN_C 4.0f
#define CHAIN_D 0.75f

#endif
