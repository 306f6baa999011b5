/* The tokenizers against vectors that other implementations made. */
#include "tests/unit/experts/text/text.h"

struct vectors {
    struct tokenizer *t;
    size_t lines;
    bool decodes; /* the bytes of the ids are the text again */
};

static struct tokenizer *open_vocab(const char *name)
{
    char file[128];
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct err e;
    (void)snprintf(file, sizeof(file), "fixtures/tokenizers/vocab/%s.gguf", name);
    char *path = unit_shared(file);
    if (path == NULL)
        return NULL;
    unit_ok(gguf_open(path, &g, &e), &e);
    unit_ok(tokenizer_open(g, &t, &e), &e);
    gguf_close(&g); /* the tokenizer keeps nothing of it */
    free(path);
    return t;
}

static void check_decoding(const struct vectors *v, const char *text, size_t len)
{
    struct buf b = text_round_trip(v->t, text, len);
    char shown[240];
    if (b.len != len || (len > 0 && memcmp(b.data, text, len) != 0))
        fail_msg("\"%s\" is another text after decoding", text_show(text, len, shown));
    buf_done(&b);
}

static void check_line(void *ctx, const json_t *o)
{
    struct vectors *v = ctx;
    const json_t *ids = json_object_get(o, "ids");
    size_t len;
    const char *text;
    char *bytes = NULL;
    if (json_object_get(o, "bytes_b64") != NULL) {
        text = bytes = text_base64(text_member(o, "bytes_b64", &len), &len);
        ids = json_object_get(o, "ids_replace");
    } else {
        text = text_member(o, "text", &len);
    }
    size_t count = json_array_size(ids);
    int32_t *wanted = mem_array(count + 1, sizeof(*wanted));
    for (size_t i = 0; i < count; i++)
        wanted[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    text_expect_ids(v->t, text, len, json_is_true(json_object_get(o, "parse_special")), wanted,
                    count);
    if (v->decodes && bytes == NULL)
        check_decoding(v, text, len);
    free(wanted);
    free(bytes);
    v->lines++;
}

static void check_file(const char *vocab, const char *prefix, bool decodes)
{
    char file[128];
    struct vectors v = {.t = open_vocab(vocab), .decodes = decodes};
    if (v.t == NULL)
        skip();
    (void)snprintf(file, sizeof(file), "fixtures/tokenizers/%s%s.jsonl", prefix, vocab);
    if (!text_each_line(file, check_line, &v))
        skip();
    print_message("%s%s: %zu lines\n", prefix, vocab, v.lines);
    tokenizer_close(&v.t);
    assert_null(v.t);
}

static void smollm2_vectors_are_met(void **state)
{
    check_file("smollm2", "", false); /* 21 bytes have no token and vanish */
}

static void qwen2_vectors_are_met(void **state)
{
    check_file("qwen2", "", true);
    check_file("qwen2", "upstream_", true);
}

static void gpt2_vectors_are_met(void **state)
{
    check_file("gpt-2", "", true);
    check_file("gpt-2", "upstream_", true);
}

static void starcoder_vectors_are_met(void **state)
{
    check_file("starcoder", "", true);
    check_file("starcoder", "upstream_", true);
}

static void llama_spm_vectors_are_met(void **state)
{
    check_file("llama-spm", "", false);
    check_file("llama-spm", "upstream_", false);
}

static void phi3_vectors_are_met(void **state)
{
    check_file("phi-3", "upstream_", false);
}

static void bert_vectors_are_met(void **state)
{
    check_file("bert-bge", "", false);
    check_file("bert-bge", "upstream_", false);
}

/* CRC-32 as zlib has it. */
static uint32_t crc32_of(const void *data, size_t len)
{
    const unsigned char *p = data;
    uint32_t crc = ~0u;
    for (size_t i = 0; i < len; i++) {
        crc ^= p[i];
        for (unsigned k = 0; k < 8; k++)
            crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1)));
    }
    return ~crc;
}

static void check_long(void *ctx, const json_t *o)
{
    const struct vectors *v = ctx;
    size_t len;
    const char *unit = text_member(o, "repeat", &len);
    struct buf text = {0};
    for (json_int_t i = json_integer_value(json_object_get(o, "count")); i > 0; i--)
        buf_append(&text, unit, len);
    struct token_list l = {0};
    struct err e;
    unit_ok(tokenizer_encode(v->t, text.data, text.len, true, &l, &e), &e);
    assert_int_equal(l.count, json_integer_value(json_object_get(o, "n_ids")));
    assert_int_equal(crc32_of(l.ids, l.count * sizeof(*l.ids)),
                     json_integer_value(json_object_get(o, "crc32_u32le")));
    free(l.ids);
    buf_done(&text);
}

static void long_runs_are_met(void **state)
{
    struct vectors v = {.t = open_vocab("smollm2")};
    if (v.t == NULL || !text_each_line("fixtures/tokenizers/smollm2_long.jsonl", check_long, &v))
        skip();
    tokenizer_close(&v.t);
}

/* What a stream shows piece by piece is the text. */
static void check_stream(void *ctx, const json_t *o)
{
    const struct vectors *v = ctx;
    if (json_object_get(o, "text") == NULL)
        return;
    size_t len;
    const char *text = text_member(o, "text", &len);
    struct token_list l = {0};
    struct detok d = {0};
    struct buf whole = {0};
    struct err e;
    unit_ok(tokenizer_encode(v->t, text, len, false, &l, &e), &e);
    for (size_t i = 0; i < l.count; i++) {
        detok_push(&d, v->t, l.ids[i], &whole);
        assert_true(utf8_valid(whole.data != NULL ? whole.data : "", whole.len));
    }
    detok_end(&d, &whole);
    if (whole.len != len || (len > 0 && memcmp(whole.data, text, len) != 0)) {
        char a[240], b[240];
        fail_msg("streamed \"%s\" for \"%s\"", text_show(whole.data, whole.len, a),
                 text_show(text, len, b));
    }
    free(l.ids);
    buf_done(&whole);
}

static void a_stream_of_ids_gives_the_text(void **state)
{
    struct vectors v = {.t = open_vocab("qwen2")};
    if (v.t == NULL || !text_each_line("fixtures/tokenizers/qwen2.jsonl", check_stream, &v))
        skip();
    tokenizer_close(&v.t);
}

static void flags_of_real_vocabularies_are_read(void **state)
{
    struct tokenizer *t = open_vocab("smollm2");
    if (t == NULL)
        skip();
    assert_int_equal(tokenizer_vocab(t), 49152);
    assert_int_equal(tokenizer_bos(t), 1);
    assert_int_equal(tokenizer_eos(t), 2);
    assert_false(tokenizer_add_bos(t));
    assert_true(tokenizer_is_eog(t, 2) && tokenizer_is_eog(t, 0) && !tokenizer_is_eog(t, 1));
    assert_true(tokenizer_is_control(t, 1) && !tokenizer_is_control(t, 100));
    assert_int_equal(tokenizer_find(t, "<|im_start|>", 12), 1);
    assert_int_equal(tokenizer_find(t, "<|im_start|", 11), -1);
    tokenizer_close(&t);
    t = open_vocab("llama-spm");
    assert_non_null(t);
    assert_true(tokenizer_add_bos(t) && tokenizer_bos(t) == 1 && tokenizer_eos(t) == 2);
    tokenizer_close(&t);
    t = open_vocab("bert-bge");
    assert_non_null(t);
    assert_true(tokenizer_bos(t) == 101 && tokenizer_eos(t) == 102);
    tokenizer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(smollm2_vectors_are_met),
        cmocka_unit_test(qwen2_vectors_are_met),
        cmocka_unit_test(gpt2_vectors_are_met),
        cmocka_unit_test(starcoder_vectors_are_met),
        cmocka_unit_test(llama_spm_vectors_are_met),
        cmocka_unit_test(phi3_vectors_are_met),
        cmocka_unit_test(bert_vectors_are_met),
        cmocka_unit_test(long_runs_are_met),
        cmocka_unit_test(a_stream_of_ids_gives_the_text),
        cmocka_unit_test(flags_of_real_vocabularies_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
