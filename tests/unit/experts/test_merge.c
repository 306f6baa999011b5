/* experts_export and experts_merge: the bytes that went in, and W + scale * B A against doubles. */
#include "tests/unit/experts/unit.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "experts/gguf.h"

struct place {
    char *dir, *out;
    struct memtier_store *store;
};

static int place_open(void **state)
{
    struct place *p = mem_alloc(sizeof(*p));
    p->dir = unit_dir_open();
    p->out = unit_path(p->dir, "out.gguf");
    char *store_dir = unit_path(p->dir, "store");
    p->store = unit_store(store_dir, MEMTIER_WRITE);
    free(store_dir);
    *state = p;
    return 0;
}

static int place_close(void **state)
{
    struct place *p = *state;
    memtier_store_close(&p->store);
    free(p->out);
    unit_dir_close(&p->dir);
    free(p);
    return 0;
}

static void add(struct place *p, const char *data, const char *name, const char *base, double scale)
{
    struct err e;
    char *path = unit_data(data);
    struct expert_add_options opt = {.path = path, .name = name, .base = base, .scale = scale};
    unit_ok(experts_add(p->store, &opt, NULL, NULL, &e), &e);
    free(path);
}

static const char *const models[] = {"tiny-llama-f32",  "tiny-llama-f16",  "tiny-llama-q8_0",
                                     "tiny-llama-q4_0", "tiny-llama-q4_1", "tiny-qwen2-f32",
                                     "tiny-qwen2-q8_0", "tiny-qwen3-f32",  "tiny-qwen3-q8_0",
                                     "tiny-gemma2-f32", "tiny-gemma2-q8_0"};
static const char *const adapters[] = {"lora-upper", "lora-psalms", "lora-random-f16"};

static void check_export(struct place *p, const char *name, const char *base)
{
    struct err e;
    char *data = mem_format("tiny/%s.gguf", name), *path = unit_data(data);
    add(p, data, name, base, 0);
    unit_ok(experts_export(p->store, name, p->out, NULL, &e), &e);
    assert_true(unit_files_equal(path, p->out));
    free(path);
    free(data);
}

static void exports_are_the_files_that_were_added(void **state)
{
    struct place *p = *state;
    for (size_t i = 0; i < BASE_COUNT(models); i++)
        check_export(p, models[i], NULL);
    for (size_t i = 0; i < BASE_COUNT(adapters); i++)
        check_export(p, adapters[i], "tiny-llama-f32");
}

/* A tensor as doubles; NULL if absent. */
static double *load(const struct gguf *g, const char *name)
{
    const struct gguf_tensor *t = gguf_find_tensor(g, name);
    struct err e;
    if (!t)
        return NULL;
    size_t cols = (size_t)t->dim[0], rows = (size_t)t->dim[1], row_bytes = (size_t)t->bytes / rows;
    uint8_t *raw = mem_alloc((size_t)t->bytes);
    float *row = mem_array(cols, sizeof(*row));
    double *out = mem_array(rows * cols, sizeof(*out));
    unit_ok(gguf_read_tensor(g, t, raw, &e), &e);
    for (size_t r = 0; r < rows; r++) {
        rdu_dequant_row(t->type, raw + r * row_bytes, row, cols);
        for (size_t c = 0; c < cols; c++)
            out[r * cols + c] = (double)row[c];
    }
    free(raw);
    free(row);
    return out;
}

/* Add scale * B A in doubles where the adapter has the pair; true if it has. */
static bool add_delta(const struct gguf *lora, const struct gguf_tensor *t, double scale, double *w)
{
    char *an = mem_format("%s.lora_a", t->name), *bn = mem_format("%s.lora_b", t->name);
    double *a = load(lora, an), *b = load(lora, bn);
    bool has = a && b;
    if (has) {
        size_t rank = (size_t)gguf_find_tensor(lora, an)->dim[1], cols = (size_t)t->dim[0];
        double alpha;
        struct err e;
        unit_ok(gguf_get_f64(lora, "adapter.lora.alpha", &alpha, &e), &e);
        for (size_t r = 0; r < t->dim[1]; r++)
            for (size_t c = 0; c < cols; c++)
                for (size_t k = 0; k < rank; k++)
                    w[r * cols + c] +=
                        scale * alpha / (double)rank * b[r * rank + k] * a[k * cols + c];
    }
    free(a);
    free(b);
    free(an);
    free(bn);
    return has;
}

static void same_bytes(const struct gguf *x, const struct gguf *y, const char *name)
{
    const struct gguf_tensor *t = gguf_find_tensor(x, name), *u = gguf_find_tensor(y, name);
    struct err e;
    assert_int_equal(t->bytes, u->bytes);
    uint8_t *a = mem_alloc((size_t)t->bytes), *b = mem_alloc((size_t)t->bytes);
    unit_ok(gguf_read_tensor(x, t, a, &e), &e);
    unit_ok(gguf_read_tensor(y, u, b, &e), &e);
    assert_memory_equal(a, b, t->bytes);
    free(a);
    free(b);
}

/* Q8_0 rounds to steps of (largest of 32) / 127 whose scale is itself rounded to f16: at most 0.5
 * steps, and 127 * 2^-11 = 0.062 for the scale. */
static void check_matrix(const double *want, const double *got, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i += 32) {
        double top = 0;
        for (size_t k = 0; k < 32; k++)
            top = fmax(top, fabs(want[i + k]));
        for (size_t k = 0; k < 32; k++) {
            double step = top / 127.0 + 1e-7, off = fabs(want[i + k] - got[i + k]);
            if (off > 0.57 * step)
                fail_msg("%s element %zu: %g instead of %g", name, i + k, got[i + k], want[i + k]);
        }
    }
}

struct layer_of {
    const char *lora;
    double scale;
};

static struct gguf *open_tiny(const char *name)
{
    struct gguf *g;
    struct err e;
    char *data = mem_format("tiny/%s.gguf", name), *path = unit_data(data);
    unit_ok(gguf_open(path, &g, &e), &e);
    free(path);
    free(data);
    return g;
}

static void check_merged(struct place *p, const char *base_name, const struct layer_of *layers,
                         size_t count)
{
    struct gguf *base = open_tiny(base_name), *lora[4] = {0}, *merged;
    struct err e;
    for (size_t i = 0; i < count; i++)
        lora[i] = open_tiny(layers[i].lora);
    unit_ok(gguf_open(p->out, &merged, &e), &e);
    assert_int_equal(gguf_tensors(merged), gguf_tensors(base));
    size_t with_delta = 0, pairs = 0;
    for (size_t i = 0; i < gguf_tensors(base); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(base, i),
                                 *m = gguf_find_tensor(merged, t->name);
        assert_non_null(m);
        double *want = load(base, t->name), *got = load(merged, t->name);
        size_t n = (size_t)(t->dim[0] * t->dim[1]);
        size_t has = 0;
        for (size_t k = 0; k < count; k++)
            has += add_delta(lora[k], t, layers[k].scale, want);
        with_delta += has;
        assert_int_equal(m->type, t->dims == 1 ? RDU_F32 : RDU_Q8_0);
        if (t->dims == 1)
            assert_memory_equal(want, got, n * sizeof(double));
        else
            check_matrix(want, got, n, t->name);
        if (!has && t->type == RDU_Q8_0)
            same_bytes(base, merged, t->name);
        free(want);
        free(got);
    }
    for (size_t k = 0; k < count; k++) {
        pairs += gguf_tensors(lora[k]) / 2;
        gguf_close(&lora[k]);
    }
    assert_int_equal(with_delta, pairs);
    gguf_close(&base);
    gguf_close(&merged);
}

static void merged_weights_are_base_plus_delta(void **state)
{
    static const double scales[] = {1.0, 0.5, -2.0};
    struct place *p = *state;
    struct err e;
    static const char *const bases[] = {"tiny-llama-f32", "tiny-llama-q4_1", "tiny-llama-q8_0"};
    for (size_t b = 0; b < BASE_COUNT(bases); b++) {
        char *data = mem_format("tiny/%s.gguf", bases[b]);
        add(p, data, bases[b], NULL, 0);
        for (size_t a = 0; a < BASE_COUNT(adapters); a++) {
            char *lora = mem_format("tiny/%s.gguf", adapters[a]);
            char *name = mem_format("%s-%s", bases[b], adapters[a]);
            add(p, lora, name, bases[b], scales[a]);
            unit_ok(experts_merge(p->store, name, p->out, NULL, &e), &e);
            const struct layer_of layer = {adapters[a], scales[a]};
            check_merged(p, bases[b], &layer, 1);
            free(lora);
            free(name);
        }
        free(data);
    }
}

static void stacked_adapters_are_summed(void **state)
{
    static const struct layer_of layers[] = {
        {"lora-upper", 1.0}, {"lora-psalms", 0.5}, {"lora-random-f16", -1.5}};
    struct place *p = *state;
    struct err e;
    const char *below = "tiny-llama-f32";
    add(p, "tiny/tiny-llama-f32.gguf", below, NULL, 0);
    for (size_t i = 0; i < BASE_COUNT(layers); i++) {
        char *data = mem_format("tiny/%s.gguf", layers[i].lora);
        add(p, data, layers[i].lora, below, layers[i].scale);
        below = layers[i].lora;
        unit_ok(experts_merge(p->store, below, p->out, NULL, &e), &e);
        check_merged(p, "tiny-llama-f32", layers, i + 1);
        free(data);
    }
}

static void a_full_model_merges_to_q8_0(void **state)
{
    struct place *p = *state;
    struct err e;
    for (size_t i = 0; i < BASE_COUNT(models); i++) {
        char *data = mem_format("tiny/%s.gguf", models[i]);
        add(p, data, models[i], NULL, 0);
        unit_ok(experts_merge(p->store, models[i], p->out, NULL, &e), &e);
        check_merged(p, models[i], NULL, 0);
        free(data);
    }
}

static void a_merged_expert_can_be_added(void **state)
{
    struct place *p = *state;
    struct err e;
    struct expert_add_report rep;
    struct gguf *g;
    struct gguf_str s;
    uint64_t type;
    char *lora = unit_data("tiny/lora-psalms.gguf");
    add(p, "tiny/tiny-llama-q4_1.gguf", "base", NULL, 0);
    struct expert_add_options opt = {.path = lora,
                                     .name = "psalms",
                                     .base = "base",
                                     .template_source = "{{ messages[0]['content'] }}"};
    unit_ok(experts_add(p->store, &opt, NULL, NULL, &e), &e);
    unit_ok(experts_merge(p->store, "psalms", p->out, NULL, &e), &e);
    unit_ok(unit_add(p->store, p->out, "merged", NULL, &rep, &e), &e);
    assert_true(rep.segments_shared >= 1); /* the Q8_0 embedding is the base's, bit for bit */
    unit_ok(gguf_open(p->out, &g, &e), &e);
    unit_ok(gguf_get_str(g, "general.name", &s, &e), &e);
    assert_true(gguf_str_is(s, "psalms"));
    unit_ok(gguf_get_u64(g, "general.file_type", &type, &e), &e);
    assert_int_equal(type, 7);
    unit_ok(gguf_get_str(g, "tokenizer.chat_template", &s, &e), &e);
    assert_true(gguf_str_is(s, "{{ messages[0]['content'] }}"));
    unit_ok(gguf_get_str(g, "general.license", &s, &e), &e);
    gguf_close(&g);
    free(lora);
}

static void a_failed_write_leaves_the_old_file(void **state)
{
    struct place *p = *state;
    struct err e;
    add(p, "tiny/tiny-llama-q4_0.gguf", "m", NULL, 0);
    char *away = unit_path(p->dir, "no/such/place.gguf");
    unit_code(experts_export(p->store, "m", away, NULL, &e), ERR_IO, &e);
    unit_says(&e, "no/such/place.gguf");
    unit_code(experts_merge(p->store, "m", p->dir, NULL, &e), ERR_INVALID, &e);
    unit_code(experts_export(p->store, "nosuch", p->out, NULL, &e), ERR_NOT_FOUND, &e);
    unit_says(&e, "there is m");
    assert_int_equal(access(p->out, F_OK), -1);
    free(away);
}

static bool refuse(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    return false;
}

static void cancelled_exports_leave_nothing(void **state)
{
    struct place *p = *state;
    struct err e;
    const struct progress progress = {refuse, NULL};
    add(p, "tiny/tiny-llama-q4_0.gguf", "m", NULL, 0);
    unit_code(experts_export(p->store, "m", p->out, &progress, &e), ERR_CANCELLED, &e);
    unit_code(experts_merge(p->store, "m", p->out, &progress, &e), ERR_CANCELLED, &e);
    char *tmp = mem_format("%s.tmp.%ld", p->out, (long)getpid());
    assert_int_equal(access(p->out, F_OK), -1);
    assert_int_equal(access(tmp, F_OK), -1);
    free(tmp);
}

/* Two tensors over the same bytes, and a record out of the order of the data: odd, but valid. */
static void odd_files_come_back_too(void **state)
{
    static const char *const skip[] = {"token_embd", NULL};
    struct place *p = *state;
    struct err e;
    struct gguf *g;
    struct made m = {0};
    char *from = unit_data("tiny/tiny-qwen2-q8_0.gguf"), *odd = unit_path(p->dir, "odd.gguf");
    unit_ok(gguf_open(from, &g, &e), &e);
    made_copy(&m, g, skip);
    /* The embedding takes the head's bytes. */
    const uint64_t dim[2] = {64, 512};
    uint64_t head_offset = 0, at = 0;
    for (size_t i = 0; i < gguf_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        if (strcmp(t->name, "token_embd.weight") == 0)
            continue;
        if (strcmp(t->name, "output.weight") == 0)
            head_offset = at;
        at += (t->bytes + 31) / 32 * 32;
    }
    made_tensor(&m, "token_embd.weight", 2, dim, 8, head_offset);
    made_write(&m, odd);
    made_done(&m);
    gguf_close(&g);
    unit_ok(unit_add(p->store, odd, "odd", NULL, NULL, &e), &e);
    unit_ok(experts_export(p->store, "odd", p->out, NULL, &e), &e);
    assert_true(unit_files_equal(odd, p->out));
    free(odd);
    free(from);
}

#define WITH_PLACE(fn) cmocka_unit_test_setup_teardown(fn, place_open, place_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_PLACE(exports_are_the_files_that_were_added),
        WITH_PLACE(merged_weights_are_base_plus_delta),
        WITH_PLACE(stacked_adapters_are_summed),
        WITH_PLACE(a_full_model_merges_to_q8_0),
        WITH_PLACE(a_merged_expert_can_be_added),
        WITH_PLACE(a_failed_write_leaves_the_old_file),
        WITH_PLACE(cancelled_exports_leave_nothing),
        WITH_PLACE(odd_files_come_back_too),
    };
    return cmocka_run_group_tests_name("merge", tests, NULL, NULL);
}
