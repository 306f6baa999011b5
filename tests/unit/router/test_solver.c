/* The solver against what is known: gradient at the optimum, threads, weights, calibration. */
#include "support.h"
#include "router/calibrate.h"
#include "router/solver.h"

/* Random sparse rows whose label depends on their columns. */
static struct sparse random_rows(size_t rows, size_t cols, size_t labels, uint32_t *label)
{
    struct rng rng;
    rng_init(&rng, 11);
    struct sparse m = {.rows = rows, .cols = cols};
    m.row_start = mem_array(rows + 1, sizeof(*m.row_start));
    m.by_row = mem_array(rows * 8, sizeof(*m.by_row));
    for (size_t r = 0; r < rows; r++) {
        uint32_t column = (uint32_t)rng_below(&rng, cols / 8);
        label[r] = (uint32_t)(rng_below(&rng, 10) ? column % labels : rng_below(&rng, labels));
        for (uint32_t i = 0; i < 8; i++)
            m.by_row[r * 8 + i] = (struct sparse_entry){.idx = column + i * (uint32_t)(cols / 8),
                                                        .value = (float)(0.1 + rng_f64(&rng))};
        m.row_start[r + 1] = (r + 1) * 8;
    }
    sparse_transpose(&m);
    return m;
}

/* Largest absolute derivative of the objective at `fit`, by the textbook formula in double. */
static double gradient_max(const struct softmax_problem *p, const struct softmax_fit *fit)
{
    size_t n = p->x->cols * p->labels;
    double *g = mem_array(n, sizeof(*g)), weights = 0.0, most = 0.0;
    for (size_t r = 0; r < p->x->rows; r++)
        weights += (double)p->weight[r];
    for (size_t r = 0; r < p->x->rows; r++) {
        double z[8], sum = 0.0;
        for (size_t k = 0; k < p->labels; k++) {
            z[k] = (double)fit->bias[k];
            for (size_t i = p->x->row_start[r]; i < p->x->row_start[r + 1]; i++)
                z[k] += (double)p->x->by_row[i].value *
                        (double)fit->weights[p->x->by_row[i].idx * fit->stride + k];
            sum += z[k] = exp(z[k]);
        }
        for (size_t k = 0; k < p->labels; k++)
            for (size_t i = p->x->row_start[r]; i < p->x->row_start[r + 1]; i++)
                g[p->x->by_row[i].idx * p->labels + k] +=
                    (double)p->weight[r] / weights * (double)p->x->by_row[i].value *
                    (z[k] / sum - (k == p->label[r] ? 1.0 : 0.0));
    }
    for (size_t c = 0; c < p->x->cols; c++)
        for (size_t k = 0; k < p->labels; k++)
            most = fmax(most, fabs(g[c * p->labels + k] +
                                   p->l2 * (double)fit->weights[c * fit->stride + k]));
    free(g);
    return most;
}

static void optimum_has_no_gradient_and_no_threads(void **state)
{
    enum { ROWS = 1200, COLS = 400, LABELS = 5 };
    uint32_t label[ROWS];
    float weight[ROWS];
    for (size_t i = 0; i < ROWS; i++)
        weight[i] = i % 3 ? 1.0f : 0.5f;
    struct sparse m = random_rows(ROWS, COLS, LABELS, label);
    struct softmax_problem p = {.x = &m,
                                .label = label,
                                .weight = weight,
                                .labels = LABELS,
                                .l2 = 1e-3,
                                .iterations_max = 300,
                                .threads = 1};
    struct softmax_fit one, four;
    struct err e = {0};
    assert_int_equal(softmax_solve(&p, NULL, &one, &e), ERR_OK);
    assert_true(gradient_max(&p, &one) < 2e-5);
    assert_true(one.objective > 0.0 && one.objective < log(LABELS));
    p.threads = 4;
    assert_int_equal(softmax_solve(&p, NULL, &four, &e), ERR_OK);
    assert_memory_equal(one.weights, four.weights, (COLS + 1) * one.stride * sizeof(float));
    free(one.weights);
    free(four.weights);

    memset(weight, 0, sizeof(weight));
    assert_int_equal(softmax_solve(&p, NULL, &one, &e), ERR_INVALID);
    sparse_done(&m);
}

static void temperature_undoes_a_known_scaling(void **state)
{
    enum { ROWS = 4000, LABELS = 3 };
    struct rng rng;
    rng_init(&rng, 3);
    float *logits = mem_array(ROWS * LABELS, sizeof(*logits)), p[LABELS];
    uint32_t *truth = mem_array(ROWS, sizeof(*truth));
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t k = 0; k < LABELS; k++)
            logits[r * LABELS + k] = (float)(4.0 * rng_f64(&rng));
        calibrate_softmax(logits + r * LABELS, LABELS, 1.0, p);
        double u = rng_f64(&rng);
        truth[r] = u < (double)p[0] ? 0 : u < (double)(p[0] + p[1]) ? 1 : 2;
        for (size_t k = 0; k < LABELS; k++)
            logits[r * LABELS + k] *= 3.0f;
    }
    double temperature = calibrate_temperature(logits, LABELS, truth, ROWS);
    assert_true(fabs(temperature - 3.0) < 0.3);
    assert_true(calibrate_temperature(logits, LABELS, truth, 0) == 1.0);
    free(logits);
    free(truth);
}

static void calibration_error_is_the_gap(void **state)
{
    const float confidence[4] = {0.95f, 0.95f, 0.95f, 0.95f};
    const bool right[4] = {true, true, true, false};
    assert_true(fabs(calibrate_ece(confidence, right, 4) - 0.2) < 1e-6);
    assert_true(calibrate_ece(confidence, right, 0) == 0.0);
    const float certain[2] = {1.0f, 0.0f};
    const bool as_said[2] = {true, false};
    assert_true(calibrate_ece(certain, as_said, 2) == 0.0);
}

static void add_chunk_number(void *ctx, size_t chunk)
{
    ((size_t *)ctx)[chunk] += chunk + 1;
}

static void every_chunk_runs_once(void **state)
{
    for (unsigned threads = 0; threads < 9; threads++) {
        size_t sums[21] = {0};
        parallel_run(threads, 21, add_chunk_number, sums);
        for (size_t i = 0; i < 21; i++)
            assert_int_equal(sums[i], i + 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(optimum_has_no_gradient_and_no_threads),
        cmocka_unit_test(temperature_undoes_a_known_scaling),
        cmocka_unit_test(calibration_error_is_the_gap),
        cmocka_unit_test(every_chunk_runs_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
