/* Hyperparameters and tensor lists of the four architectures, and the angles of RoPE. */
#include "tests/unit/experts/unit.h"

#include <math.h>

#include "experts/model.h"

static void load(const char *name, struct model_shape *m)
{
    struct gguf *g;
    struct err e;
    char *path = unit_data(name);
    unit_ok(gguf_open(path, &g, &e), &e);
    unit_ok(model_parse(g, m, &e), &e);
    gguf_close(&g);
    free(path);
}

static void close_to(double a, double b)
{
    if (fabs(a - b) > 1e-6 * fmax(1e-3, fabs(b)))
        fail_msg("%.12g is not %.12g", a, b);
}

static void llama_shape_is_read(void **state)
{
    struct model_shape m;
    load("tiny/tiny-llama-q4_1.gguf", &m);
    assert_int_equal(m.arch, MODEL_LLAMA);
    assert_int_equal(m.layers, 2);
    assert_int_equal(m.width, 64);
    assert_int_equal(m.heads, 4);
    assert_int_equal(m.kv_heads, 2);
    assert_int_equal(m.head_dim, 16);
    assert_int_equal(m.ffn, 192);
    assert_int_equal(m.vocab, 512);
    assert_int_equal(m.context, 256);
    assert_int_equal(m.rope_style, RDU_ROPE_PAIRS);
    assert_int_equal(m.rope_dims, 16);
    assert_true(m.tied_head && !m.qk_norm && !m.qkv_bias && !m.gelu && !m.post_norms);
    close_to((double)m.rms_eps, 1e-5);
    close_to((double)m.attn_scale, 0.25);
    assert_int_equal(model_layer_window(&m, 0), 0);
}

static void other_shapes_differ_where_they_should(void **state)
{
    struct model_shape m;
    load("tiny/tiny-qwen2-q8_0.gguf", &m);
    assert_int_equal(m.arch, MODEL_QWEN2);
    assert_true(m.qkv_bias && !m.tied_head && !m.qk_norm);
    assert_int_equal(m.rope_style, RDU_ROPE_HALVES);
    close_to(m.rope_base, 1e6);
    load("tiny/tiny-qwen3-f32.gguf", &m);
    assert_int_equal(m.arch, MODEL_QWEN3);
    assert_int_equal(m.head_dim, 64); /* not the width over the heads */
    assert_int_equal(m.heads * m.head_dim, 128);
    assert_true(m.qk_norm && !m.qkv_bias && m.tied_head);
    load("tiny/tiny-gemma2-f32.gguf", &m);
    assert_int_equal(m.arch, MODEL_GEMMA2);
    assert_true(m.gelu && m.post_norms);
    close_to((double)m.embed_scale, 8.0);
    close_to((double)m.attn_softcap, 50.0);
    close_to((double)m.logit_softcap, 30.0);
    assert_int_equal(m.window, 16);
    assert_int_equal(model_layer_window(&m, 0), 16); /* even layers slide, odd ones see all */
    assert_int_equal(model_layer_window(&m, 1), 0);
}

static void equal_files_have_equal_shapes(void **state)
{
    struct model_shape a, b;
    load("tiny/tiny-llama-f32.gguf", &a);
    load("tiny/tiny-llama-q4_0.gguf", &b);
    assert_true(model_shape_equal(&a, &b));
    load("tiny/tiny-qwen2-f32.gguf", &b);
    assert_false(model_shape_equal(&a, &b));
}

static void slots_name_every_tensor_of_a_file(void **state)
{
    static const char *const files[] = {"tiny/tiny-llama-f32.gguf", "tiny/tiny-qwen2-f32.gguf",
                                        "tiny/tiny-qwen3-f32.gguf", "tiny/tiny-gemma2-f32.gguf"};
    for (size_t f = 0; f < BASE_COUNT(files); f++) {
        struct gguf *g;
        struct err e;
        struct model_shape m;
        struct model_slot slot[MODEL_SLOTS_MAX];
        char *path = unit_data(files[f]);
        unit_ok(gguf_open(path, &g, &e), &e);
        unit_ok(model_parse(g, &m, &e), &e);
        size_t layer = model_layer_slots(&m, slot), global = model_global_slots(&m, slot);
        assert_int_equal(layer * m.layers + global, gguf_tensors(g));
        gguf_close(&g);
        free(path);
    }
}

static void names_are_split_once_and_only_once(void **state)
{
    const char *slot;
    assert_int_equal(model_split_name("blk.12.attn_q.weight", &slot), 12);
    assert_string_equal(slot, "attn_q.weight");
    assert_int_equal(model_split_name("blk.0.x", &slot), 0);
    static const char *const others[] = {"output.weight", "blk.",     "blk.x.y",  "blk.1",
                                         "blk.1.",        "blk.01.x", "blk.-1.x", "blk.123456.x",
                                         "blk..x",        ""};
    for (size_t i = 0; i < BASE_COUNT(others); i++) {
        assert_int_equal(model_split_name(others[i], &slot), -1);
        assert_ptr_equal(slot, others[i]);
    }
}

/* The tiny llama with some keys or tensors left out and others added. */
static enum err_code parse_changed(const char *const *skip, void (*add)(struct made *),
                                   struct model_shape *m, struct err *e)
{
    struct made made = {0};
    struct gguf *g;
    char *path = unit_data("tiny/tiny-llama-f32.gguf"), *dir = unit_dir_open();
    char *changed = unit_path(dir, "changed.gguf");
    unit_ok(gguf_open(path, &g, e), e);
    made_copy(&made, g, skip);
    if (add)
        add(&made);
    made_write(&made, changed);
    gguf_close(&g);
    unit_ok(gguf_open(changed, &g, e), e);
    enum err_code rc = model_parse(g, m, e);
    gguf_close(&g);
    made_done(&made);
    free(changed);
    free(path);
    unit_dir_close(&dir);
    return rc;
}

static void add_linear(struct made *m)
{
    made_str(m, "llama.rope.scaling.type", "linear");
    made_f32(m, "llama.rope.scaling.factor", 4.0F);
}

static void add_old_linear(struct made *m)
{
    made_f32(m, "llama.rope.scale_linear", 2.0F);
}

static void add_longrope(struct made *m)
{
    made_str(m, "llama.rope.scaling.type", "longrope");
}

static void add_factors(struct made *m)
{
    const float f[8] = {1, 1, 1, 1, 2, 4, 8, 8};
    made_data(m, "rope_freqs.weight", 8, 0, 0, f, sizeof(f));
}

static void add_bad_factors(struct made *m)
{
    const float f[8] = {1, 1, 1, 1, 2, 0, 8, 8};
    made_data(m, "rope_freqs.weight", 8, 0, 0, f, sizeof(f));
}

static void add_experts(struct made *m)
{
    made_u32(m, "llama.expert_count", 8);
}

static void add_one_bias(struct made *m)
{
    const float f[64] = {0};
    made_data(m, "blk.0.attn_q.bias", 64, 0, 0, f, sizeof(f));
}

static void add_window(struct made *m)
{
    made_u32(m, "llama.attention.sliding_window", 32);
}

static void rope_scaling_is_read(void **state)
{
    struct model_shape m;
    struct err e;
    double plain[8], angle[8], scale;
    unit_ok(parse_changed(NULL, NULL, &m, &e), &e);
    model_rope_angles(&m, plain, &scale);
    close_to(plain[0], 1.0);
    close_to(plain[4], pow(10000.0, -0.5));
    close_to(scale, 1.0);
    unit_ok(parse_changed(NULL, add_linear, &m, &e), &e);
    model_rope_angles(&m, angle, &scale);
    for (unsigned i = 0; i < 8; i++)
        close_to(angle[i], plain[i] / 4.0);
    unit_ok(parse_changed(NULL, add_old_linear, &m, &e), &e);
    model_rope_angles(&m, angle, &scale);
    close_to(angle[3], plain[3] / 2.0);
    unit_ok(parse_changed(NULL, add_factors, &m, &e), &e);
    assert_int_equal(m.rope_factors_count, 8);
    model_rope_angles(&m, angle, &scale);
    close_to(angle[3], plain[3]);
    close_to(angle[5], plain[5] / 4.0);
    unit_code(parse_changed(NULL, add_bad_factors, &m, &e), ERR_CORRUPT, &e);
    unit_says(&e, "factor 5");
    unit_code(parse_changed(NULL, add_longrope, &m, &e), ERR_UNSUPPORTED, &e);
    unit_says(&e, "longrope");
}

/* Values of the paper's formulas from an independent program: dimension 64, base 10000, factor 4,
 * original context 2048, beta 32 and 1. */
static void yarn_angles_are_those_of_the_paper(void **state)
{
    static const struct {
        unsigned pair;
        double angle;
    } want[] = {{0, 1.0},
                {5, 0.23713737056616555},
                {10, 0.049745578766838564},
                {12, 0.024325212770525993},
                {15, 0.00794983930712751},
                {20, 0.0009730085108210398},
                {31, 3.33380358040831e-05}};
    struct model_shape m;
    double angle[32], scale;
    memset(&m, 0, sizeof(m));
    m.rope_dims = 64;
    m.rope_base = 10000.0;
    m.rope_scaling = MODEL_ROPE_YARN;
    m.rope_factor = 4.0;
    m.rope_attn_factor = 1.0;
    m.yarn_beta_fast = 32;
    m.yarn_beta_slow = 1;
    m.rope_original_context = 2048;
    model_rope_angles(&m, angle, &scale);
    for (size_t i = 0; i < BASE_COUNT(want); i++)
        assert_true(fabs(angle[want[i].pair] - want[i].angle) < 1e-12);
    assert_true(fabs(scale - 1.138629436111989) < 1e-12);
}

static void what_cannot_be_run_is_refused(void **state)
{
    static const char *const no_q[] = {"blk.1.attn_q.weight", NULL};
    static const char *const no_norm[] = {"output_norm", NULL};
    static const char *const no_tokens[] = {"tokenizer.ggml.tokens", NULL};
    static const char *const no_context[] = {"llama.context_length", NULL};
    struct model_shape m;
    struct err e;
    unit_code(parse_changed(no_q, NULL, &m, &e), ERR_CORRUPT, &e);
    unit_says(&e, "blk.1.attn_q.weight");
    unit_code(parse_changed(no_norm, NULL, &m, &e), ERR_CORRUPT, &e);
    unit_code(parse_changed(no_tokens, NULL, &m, &e), ERR_CORRUPT, &e);
    unit_code(parse_changed(no_context, NULL, &m, &e), ERR_CORRUPT, &e);
    unit_says(&e, "llama.context_length");
    unit_code(parse_changed(NULL, add_experts, &m, &e), ERR_UNSUPPORTED, &e);
    unit_says(&e, "mixture");
    /* A bias in one layer only: the others would run without. */
    unit_code(parse_changed(NULL, add_one_bias, &m, &e), ERR_CORRUPT, &e);
    unit_says(&e, "bias");
    unit_ok(parse_changed(NULL, add_window, &m, &e), &e);
    assert_int_equal(model_layer_window(&m, 0), 32);
    assert_int_equal(model_layer_window(&m, 1), 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_shape_is_read),
        cmocka_unit_test(other_shapes_differ_where_they_should),
        cmocka_unit_test(equal_files_have_equal_shapes),
        cmocka_unit_test(slots_name_every_tensor_of_a_file),
        cmocka_unit_test(names_are_split_once_and_only_once),
        cmocka_unit_test(rope_scaling_is_read),
        cmocka_unit_test(yarn_angles_are_those_of_the_paper),
        cmocka_unit_test(what_cannot_be_run_is_refused),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
