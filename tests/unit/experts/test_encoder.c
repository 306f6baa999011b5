/* Sentence encoders against a computation of their own in double: both file formats, both numerics,
 * every execution level and instruction set, alone and in batches; and files that are wrong. */
#include "tests/unit/experts/bert.h"

#include <math.h>
#include <unistd.h>

struct fixture {
    struct bert bert;
    char *dir, *gguf;
};

static int open_files(void **state)
{
    struct fixture *f = mem_alloc(sizeof(*f));
    bert_open(&f->bert, 7);
    f->dir = unit_dir_open();
    bert_write_folder(&f->bert, f->dir);
    f->gguf = unit_path(f->dir, "tiny.gguf");
    bert_write_gguf(&f->bert, f->gguf);
    *state = f;
    return 0;
}

static int close_files(void **state)
{
    struct fixture *f = *state;
    bert_close(&f->bert);
    unit_dir_close(&f->dir);
    free(f->gguf);
    free(f);
    return 0;
}

static struct encoder *open_encoder(const char *path, enum rdu_numerics numerics,
                                    enum rdu_exec exec, const char *cpu)
{
    struct encoder *n = NULL;
    struct err e = {0};
    const struct encoder_options opt = {
        .path = path, .numerics = numerics, .exec = exec, .cpu = cpu};
    unit_ok(encoder_open(&opt, &n, &e), &e);
    return n;
}

static void encode_ids(struct encoder *n, const int32_t *ids, size_t count, float *ret)
{
    struct err e = {0};
    const struct encoder_text t = {.ids = ids, .len = count};
    unit_ok(encoder_encode(n, &t, 1, 0, ret, NULL, &e), &e);
}

static double cosine(const float *a, const double *b)
{
    double dot = 0.0, aa = 0.0;
    for (int i = 0; i < BERT_WIDTH; i++) {
        dot += (double)a[i] * b[i];
        aa += (double)a[i] * (double)a[i];
    }
    return dot / sqrt(aa);
}

static const size_t lengths[] = {0, 1, 2, 14, 29, 30, 31, 33, 62, 78};

static void random_ids(struct rng *r, int32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ids[i] = 4 + (int32_t)rng_below(r, bert_vocab - 4);
}

static void vectors_are_those_of_the_formulas(void **state)
{
    struct fixture *f = *state;
    struct rng r;
    rng_init(&r, unit_seed());
    for (int gguf = 0; gguf < 2; gguf++)
        for (int numerics = 0; numerics < 2; numerics++) {
            bool int8 = numerics == RDU_NUMERICS_INT8;
            struct encoder *n = open_encoder(gguf ? f->gguf : f->dir, (enum rdu_numerics)numerics,
                                             RDU_EXEC_FUSED, NULL);
            for (size_t i = 0; i < BASE_COUNT(lengths); i++) {
                int32_t ids[BERT_CONTEXT] = {0};
                float got[BERT_WIDTH];
                double want[BERT_WIDTH];
                random_ids(&r, ids, lengths[i]);
                encode_ids(n, ids, lengths[i], got);
                bert_answer(&f->bert, ids, lengths[i], gguf, want);
                double c = cosine(got, want);
                if (!(c > (int8 ? 0.995 : 0.999999)))
                    fail_msg("%s %s, %zu tokens: cosine %.7f", gguf ? "gguf" : "folder",
                             int8 ? "int8" : "f32", lengths[i], c);
            }
            encoder_close(&n);
        }
}

/* One step of the encoder is bit for bit the same at every level, on every instruction set, and
 * whatever else is in the batch. */
static void bits_do_not_depend_on_level_cpu_or_batch(void **state)
{
    struct fixture *f = *state;
    static const char *const cpus[] = {"scalar", "avx2", NULL};
    enum { TEXTS = 40 };
    int32_t ids[TEXTS][BERT_CONTEXT];
    struct encoder_text t[TEXTS];
    struct rng r;
    rng_init(&r, unit_seed() + 1);
    for (size_t i = 0; i < TEXTS; i++) {
        size_t count = rng_below(&r, BERT_CONTEXT - 2);
        random_ids(&r, ids[i], count);
        t[i] = (struct encoder_text){.ids = ids[i], .len = count};
    }
    for (int numerics = 0; numerics < 2; numerics++) {
        static float want[TEXTS][BERT_WIDTH], got[TEXTS][BERT_WIDTH];
        struct err e = {0};
        struct encoder *n =
            open_encoder(f->dir, (enum rdu_numerics)numerics, RDU_EXEC_INTERP, NULL);
        for (size_t i = 0; i < TEXTS; i++)
            unit_ok(encoder_encode(n, &t[i], 1, 0, want[i], NULL, &e), &e);
        encoder_close(&n);
        for (int exec = RDU_EXEC_UNFUSED; exec <= RDU_EXEC_FUSED; exec++)
            for (size_t c = 0; c < BASE_COUNT(cpus); c++) {
                uint64_t tokens = 0, most = 0;
                const struct encoder_options opt = {.path = f->dir,
                                                    .numerics = (enum rdu_numerics)numerics,
                                                    .exec = (enum rdu_exec)exec,
                                                    .cpu = cpus[c]};
                if (encoder_open(&opt, &n, &e) == ERR_UNSUPPORTED)
                    continue; /* this machine lacks it */
                unit_ok(encoder_encode(n, t, TEXTS, 0, got[0], &tokens, &e), &e);
                for (size_t i = 0; i < TEXTS; i++)
                    most += t[i].len + 2;
                assert_int_equal(tokens, most);
                assert_memory_equal(got, want, sizeof(want));
                encoder_close(&n);
            }
    }
}

static void text_is_cut_into_pieces_and_long_text_keeps_both_ends(void **state)
{
    struct fixture *f = *state;
    struct encoder *n = open_encoder(f->dir, RDU_NUMERICS_F32, RDU_EXEC_FUSED, NULL);
    struct err e = {0};
    float by_text[BERT_WIDTH], by_ids[BERT_WIDTH];
    /* The Cats [UNK] running. */
    const int32_t ids[] = {5, 6, 9, 1, 11, 12, 15};
    const struct encoder_text t = {.text = "The C\xC3\xA1ts zzz running.", .len = 22};
    unit_ok(encoder_encode(n, &t, 1, 0, by_text, NULL, &e), &e);
    encode_ids(n, ids, BASE_COUNT(ids), by_ids);
    assert_memory_equal(by_text, by_ids, sizeof(by_ids));

    struct buf long_text = {0};
    for (int i = 0; i < 20000; i++)
        buf_puts(&long_text, i == 0 ? "dog" : i == 19999 ? " mat" : " the");
    const struct encoder_text l = {.text = long_text.data, .len = long_text.len};
    const int32_t kept[] = {7, 5, 5, 5, 5, 14};
    uint64_t tokens = 0;
    unit_ok(encoder_encode(n, &l, 1, 8, by_text, &tokens, &e), &e);
    encode_ids(n, kept, BASE_COUNT(kept), by_ids);
    assert_int_equal(tokens, 8);
    assert_memory_equal(by_text, by_ids, sizeof(by_ids));
    buf_done(&long_text);

    const int32_t beyond = (int32_t)bert_vocab;
    const struct encoder_text bad = {.ids = &beyond, .len = 1};
    unit_code(encoder_encode(n, &bad, 1, 0, by_ids, NULL, &e), ERR_INVALID, &e);
    assert_int_equal(encoder_width(n), BERT_WIDTH);
    assert_int_equal(encoder_tokens_max(n), BERT_CONTEXT);
    encoder_close(&n);
}

/* A config.json with one thing changed. */
static void expect_refusal(struct fixture *f, const char *from, const char *to, const char *says)
{
    struct buf text = {0}, changed = {0};
    struct err e = {0};
    struct encoder *n = NULL;
    char *path = unit_path(f->dir, "config.json");
    unit_ok(file_read(path, 1 << 16, &text, &e), &e);
    char *at = strstr(text.data, from);
    assert_non_null(at);
    buf_append(&changed, text.data, (size_t)(at - text.data));
    buf_puts(&changed, to);
    buf_puts(&changed, at + strlen(from));
    unit_write(path, changed.data, changed.len);
    const struct encoder_options opt = {.path = f->dir};
    assert_int_not_equal(encoder_open(&opt, &n, &e), ERR_OK);
    unit_says(&e, says);
    unit_write(path, text.data, text.len);
    free(path);
    buf_done(&text);
    buf_done(&changed);
}

static void a_folder_that_is_no_bert_is_refused_with_the_reason(void **state)
{
    struct fixture *f = *state;
    struct encoder *n = NULL;
    struct err e = {0};
    expect_refusal(f, "\"bert\"", "\"roberta\"", "model_type");
    expect_refusal(f, "\"gelu\"", "\"relu\"", "hidden_act");
    expect_refusal(f, "\"num_hidden_layers\":2", "\"num_hidden_layers\":3", "layer.2");
    expect_refusal(f, "\"num_hidden_layers\":2", "\"num_hidden_layers\":0", "num_hidden_layers");
    expect_refusal(f, "\"hidden_size\":64", "\"hidden_size\":96", "missing or not");
    expect_refusal(f, "\"num_attention_heads\":4", "\"num_attention_heads\":5", "heads");
    expect_refusal(f, "\"vocab_size\":29", "\"vocab_size\":28", "");
    expect_refusal(f, "{", "[", "config.json");
    const struct encoder_options missing = {.path = "/nonexistent/encoder"};
    unit_code(encoder_open(&missing, &n, &e), ERR_NOT_FOUND, &e);
}

static void weights_that_are_no_numbers_are_refused(void **state)
{
    struct fixture *f = *state;
    struct encoder *n = NULL;
    struct err e = {0};
    char *path = unit_path(f->dir, "model.safetensors");
    struct buf good = {0};
    unit_ok(file_read(path, 1 << 24, &good, &e), &e);
    float nan_value = NAN;
    memcpy(good.data + good.len - sizeof(float), &nan_value, sizeof(float));
    unit_write(path, good.data, good.len);
    const struct encoder_options opt = {.path = f->dir};
    unit_code(encoder_open(&opt, &n, &e), ERR_CORRUPT, &e);
    unit_says(&e, "not a number");
    bert_write_folder(&f->bert, f->dir);
    buf_done(&good);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_are_those_of_the_formulas),
        cmocka_unit_test(bits_do_not_depend_on_level_cpu_or_batch),
        cmocka_unit_test(text_is_cut_into_pieces_and_long_text_keeps_both_ends),
        cmocka_unit_test(a_folder_that_is_no_bert_is_refused_with_the_reason),
        cmocka_unit_test(weights_that_are_no_numbers_are_refused),
    };
    return cmocka_run_group_tests(tests, open_files, close_files);
}
