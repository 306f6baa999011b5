/* The tokenizers over vocabularies made here, small enough to work the ids out by hand. */
#include "tests/unit/experts/text/text.h"

#include "experts/gguf.h"

static struct tokenizer *open_made(struct made *m)
{
    struct tokenizer *t = NULL;
    struct err e;
    unit_ok(made_tokenizer(m, &t, &e), &e);
    made_done(m);
    return t;
}

static void expect(const struct tokenizer *t, const char *text, bool parse_special,
                   const char *wanted)
{
    /* wanted: ids as decimal text */
    int32_t ids[64];
    size_t n = 0;
    for (const char *p = wanted; *p != '\0';) {
        char *end;
        ids[n++] = (int32_t)strtol(p, &end, 10);
        p = *end == ' ' ? end + 1 : end;
    }
    text_expect_ids(t, text, strlen(text), parse_special, ids, n);
}

/* Ids: bytes 0..255 are themselves; 256 "ab", 257 "abc", 258 "bc", 259 <|end|> control, 260 <tool>
 * user, 261 <tool>x user, 262 [UNK] unknown, 263 unused. */
static struct tokenizer *byte_tokenizer(const char *pre)
{
    static const struct made_token tokens[] = {
        {"ab", 0, 0},     {"abc", 0, 0},     {"bc", 0, 0},    {"<|end|>", 3, 0},
        {"<tool>", 4, 0}, {"<tool>x", 4, 0}, {"[UNK]", 2, 0}, {"[PAD1]", 5, 0}};
    static const char *const merges[] = {"a b", "b c", "ab c"};
    struct made m = {0};
    made_byte_vocab(&m, pre, "", tokens, BASE_COUNT(tokens), merges, BASE_COUNT(merges));
    made_u32(&m, "tokenizer.ggml.eos_token_id", 259);
    return open_made(&m);
}

static void merges_follow_their_rank(void **state)
{
    struct tokenizer *t = byte_tokenizer("gpt-2");
    expect(t, "abc", false, "257");
    expect(t, "bc", false, "258");
    expect(t, "abbc", false, "256 258");
    expect(t, "xab", false, "120 256");
    expect(t, "", false, "");
    expect(t, "\n", false, "10");
    tokenizer_close(&t);
}

/* The heap that takes over at length gives what the short way gives. */
static void long_pieces_merge_as_short_ones(void **state)
{
    struct tokenizer *t = byte_tokenizer("gpt-2");
    struct buf text = {0};
    struct token_list l = {0};
    struct err e;
    for (int i = 0; i < 1000; i++)
        buf_puts(&text, "abcbcab");
    unit_ok(tokenizer_encode(t, text.data, text.len, false, &l, &e), &e);
    /* abcbcab|abcbcab: "ab" first, then "bc", then "ab c": abc, bc, ab each time. */
    assert_int_equal(l.count, 3000);
    for (size_t i = 0; i < l.count; i += 3)
        assert_true(l.ids[i] == 257 && l.ids[i + 1] == 258 && l.ids[i + 2] == 256);
    free(l.ids);
    buf_done(&text);
    tokenizer_close(&t);
}

static void special_tokens_match_as_asked(void **state)
{
    struct tokenizer *t = byte_tokenizer("gpt-2");
    expect(t, "a<|end|>b", true, "97 259 98");
    expect(t, "<|end|>", false, "60 124 101 110 100 124 62");
    expect(t, "<tool>", false, "260");
    expect(t, "<tool>", true, "260");
    expect(t, "<tool>xy", false, "261 121"); /* the longest one */
    expect(t, "<<tool><tool", true, "60 260 60 116 111 111 108");
    expect(t, "[UNK]", true, "262");
    expect(t, "[UNK]", false, "91 85 78 75 93");
    expect(t, "[PAD1]", true, "91 80 65 68 49 93"); /* unused: no text of its own */
    tokenizer_close(&t);
}

static void invalid_utf8_becomes_replacement_characters(void **state)
{
    struct tokenizer *t = byte_tokenizer("gpt-2");
    static const struct {
        const char *bytes;
        unsigned parts;
    } cases[] = {
        {"\xFF", 1},         {"\xC0\x80", 2},         {"\xE2\x82", 1}, {"\xED\xA0\x80", 3},
        {"\xF0\x90\x80", 1}, {"\xF4\x90\x80\x80", 4}, {"\x80\x80", 2}, {"\xF0\x80\x80\x80", 4},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct buf wanted = {0};
        struct token_list l = {0};
        struct err e;
        for (unsigned k = 0; k < cases[i].parts; k++)
            buf_puts(&wanted, "\xEF\xBF\xBD");
        struct buf back = text_round_trip(t, cases[i].bytes, strlen(cases[i].bytes));
        assert_int_equal(back.len, wanted.len);
        assert_memory_equal(back.data, wanted.data, wanted.len);
        unit_ok(tokenizer_encode(t, cases[i].bytes, strlen(cases[i].bytes), true, &l, &e), &e);
        assert_int_equal(l.count, wanted.len);
        free(l.ids);
        buf_done(&back);
        buf_done(&wanted);
    }
    tokenizer_close(&t);
}

static void bytes_without_a_token_vanish(void **state)
{
    static const struct made_token tokens[] = {{"xy", 0, 0}};
    static const char *const merges[] = {"x y", "q z", "qz x"};
    struct made m = {0};
    made_byte_vocab(&m, "gpt-2", "q", tokens, 1, merges, BASE_COUNT(merges));
    struct tokenizer *t = open_made(&m);
    /* "q" has none; the merge "q z" makes a string that is no token and comes apart again. */
    expect(t, "q", false, "");
    expect(t, "aqb", false, "97 98");
    expect(t, "qz", false, "121"); /* z is byte 122, one place lower without q */
    expect(t, "qzx", false, "121 119");
    expect(t, "xy", false, "255");
    tokenizer_close(&t);
}

static void whole_pieces_pass_merges_where_the_family_says_so(void **state)
{
    static const struct made_token tokens[] = {{"xyz", 0, 0}, {"xy", 0, 0}};
    static const char *const merges[] = {"x y"};
    static const struct {
        const char *pre, *ids;
    } cases[] = {{"llama-bpe", "256"}, {"dbrx", "257 122"}, {"gpt-2", "257 122"}};
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct made m = {0};
        made_byte_vocab(&m, cases[i].pre, "", tokens, 2, merges, 1);
        struct tokenizer *t = open_made(&m);
        expect(t, "xyz", false, cases[i].ids);
        tokenizer_close(&t);
    }
}

static void tokens_give_their_bytes(void **state)
{
    struct tokenizer *t = byte_tokenizer(NULL);
    size_t len = 99;
    assert_memory_equal(tokenizer_token_bytes(t, 257, false, &len), "abc", 3);
    assert_int_equal(len, 3);
    assert_memory_equal(tokenizer_token_bytes(t, 10, false, &len), "\n", 1);
    assert_memory_equal(tokenizer_token_bytes(t, 0xAD, false, &len), "\xAD", 1);
    assert_int_equal(len, 1);
    (void)tokenizer_token_bytes(t, 259, false, &len);
    assert_int_equal(len, 0);
    assert_memory_equal(tokenizer_token_bytes(t, 259, true, &len), "<|end|>", 7);
    assert_memory_equal(tokenizer_token_bytes(t, 260, false, &len), "<tool>", 6);
    assert_int_equal(len, 6);
    (void)tokenizer_token_bytes(t, 263, true, &len);
    assert_int_equal(len, 0);
    assert_null(tokenizer_token_bytes(t, -1, true, &len));
    assert_null(tokenizer_token_bytes(t, tokenizer_vocab(t), true, &len));
    assert_true(tokenizer_is_eog(t, 259) && !tokenizer_is_eog(t, -1) && !tokenizer_is_eog(t, 9999));
    assert_int_equal(tokenizer_bos(t), -1);
    assert_false(tokenizer_add_bos(t));
    tokenizer_close(&t);
}

static void a_stream_holds_torn_characters_back(void **state)
{
    struct tokenizer *t = byte_tokenizer("gpt-2");
    struct detok d = {0};
    struct buf out = {0};
    detok_push(&d, t, 0xF0, &out);
    detok_push(&d, t, 0x9F, &out);
    detok_push(&d, t, 0x98, &out);
    assert_int_equal(out.len, 0);
    detok_push(&d, t, 0x80, &out);
    assert_int_equal(out.len, 4);
    assert_memory_equal(out.data, "\xF0\x9F\x98\x80", 4);
    buf_clear(&out);
    /* What can no longer become a character is shown as one that can not be read. */
    detok_push(&d, t, 0xE2, &out);
    detok_push(&d, t, 'x', &out);
    detok_push(&d, t, 0x80, &out);
    assert_string_equal(out.data, "\xEF\xBF\xBDx\xEF\xBF\xBD");
    buf_clear(&out);
    detok_push(&d, t, 259, &out); /* control tokens are silent */
    detok_push(&d, t, 9999, &out);
    detok_push(&d, t, 0xC3, &out);
    assert_int_equal(out.len, 0);
    detok_end(&d, &out);
    assert_string_equal(out.data, "\xEF\xBF\xBD");
    detok_end(&d, &out);
    assert_int_equal(out.len, 3);
    buf_done(&out);
    tokenizer_close(&t);
}

/* ---- SentencePiece --------------------------------------------------------------------------- */

#define SPACE "\xE2\x96\x81"

/* 0 <unk>, 1 <s>, 2 </s>, 3 _, 4 a, 5 b, 6 c, 7 ab, 8 bc, 9 _a, 10 <0x0A>, 11..13 bytes of e-acute
 * and one more, 14 abc unused, 15 "<s" */
static struct tokenizer *spm_tokenizer(bool prefix)
{
    static const struct made_token tokens[] = {
        {"<unk>", 2, 0},  {"<s>", 3, 0},      {"</s>", 3, 0},    {SPACE, 0, -10},
        {"a", 0, -11},    {"b", 0, -12},      {"c", 0, -13},     {"ab", 0, -2},
        {"bc", 0, -1},    {SPACE "a", 0, -3}, {"<0x0A>", 6, 0},  {"<0xC3>", 6, 0},
        {"<0xA9>", 6, 0}, {"<0xE4>", 6, 0},   {"abc", 5, -0.5f}, {"<s", 0, -4}};
    struct made m = {0};
    made_vocab(&m, "llama", tokens, BASE_COUNT(tokens));
    const uint8_t flag = prefix;
    made_kv(&m, "tokenizer.ggml.add_space_prefix", GGUF_BOOL, &flag, 1);
    return open_made(&m);
}

static void scores_decide_and_ties_go_left(void **state)
{
    struct tokenizer *t = spm_tokenizer(false);
    expect(t, "ab", false, "7");
    expect(t, "bcbc", false, "8 8");
    expect(t, " a", false, "9");
    expect(t, " ab", false, "3 7"); /* ab (-2) before _a (-3) */
    /* bc joins first, then a+bc = abc, which is unused and comes apart the way it was made. */
    expect(t, "abc", false, "4 8");
    tokenizer_close(&t);
}

static void what_no_piece_covers_is_written_in_bytes(void **state)
{
    struct tokenizer *t = spm_tokenizer(false);
    expect(t, "\n", false, "10");
    expect(t, "a\xC3\xA9", false, "4 11 12");
    expect(t, "\xE4\xB8\x80", false, "13 0"); /* a byte without a token ends in the unknown one */
    expect(t, "z", false, "0");
    size_t len;
    assert_memory_equal(tokenizer_token_bytes(t, 9, false, &len), " a", 2);
    assert_int_equal(len, 2);
    assert_memory_equal(tokenizer_token_bytes(t, 11, false, &len), "\xC3", 1);
    assert_int_equal(len, 1);
    tokenizer_close(&t);
}

static void a_blank_goes_in_front_of_text(void **state)
{
    struct tokenizer *t = spm_tokenizer(true);
    expect(t, "a", false, "9");
    expect(t, "", false, "");
    expect(t, "a<s>a", true, "9 1 9");
    tokenizer_close(&t);
    t = spm_tokenizer(false);
    expect(t, "a<s>a", true, "4 1 4");
    tokenizer_close(&t);
}

static void control_tokens_can_not_be_spelled(void **state)
{
    struct tokenizer *t = spm_tokenizer(false);
    expect(t, "<s>", false, "15 0"); /* "<s" is a piece, "<s>" is none to a text */
    expect(t, "</s>", false, "0 0 0 0");
    expect(t, "<s>", true, "1");
    assert_true(tokenizer_bos(t) == 1 && tokenizer_eos(t) == 2 && tokenizer_add_bos(t));
    tokenizer_close(&t);
}

/* ---- WordPiece ------------------------------------------------------------------------------- */

static struct tokenizer *wpm_tokenizer(void)
{
    /* 0 [UNK] 1 [CLS] 2 [SEP] 3 _un 4 aff 5 able 6 _a 7 _, 8 _e 9 cole 10 _中 11 b */
    static const struct made_token tokens[] = {{"[UNK]", 3, 0},
                                               {"[CLS]", 3, 0},
                                               {"[SEP]", 3, 0},
                                               {SPACE "un", 0, 0},
                                               {"aff", 0, 0},
                                               {"able", 0, 0},
                                               {SPACE "a", 0, 0},
                                               {SPACE ",", 0, 0},
                                               {SPACE "e", 0, 0},
                                               {"cole", 0, 0},
                                               {SPACE "\xE4\xB8\xAD", 0, 0},
                                               {"b", 0, 0}};
    struct made m = {0};
    made_vocab(&m, "bert", tokens, BASE_COUNT(tokens));
    made_u32(&m, "tokenizer.ggml.unknown_token_id", 0);
    made_u32(&m, "tokenizer.ggml.cls_token_id", 1);
    made_u32(&m, "tokenizer.ggml.seperator_token_id", 2);
    return open_made(&m);
}

static void words_are_spelled_with_the_longest_pieces(void **state)
{
    struct tokenizer *t = wpm_tokenizer();
    expect(t, "unaffable", false, "3 4 5");
    expect(t, "  Unaffable ,a", false, "3 4 5 7 6");
    expect(t, "unaffably", false, "0"); /* the whole word, not the rest */
    expect(t,
           "\xC3\x89"
           "cole",
           false, "8 9"); /* É: lower case, without its accent */
    expect(t,
           "a\xE4\xB8\xAD"
           "a",
           false, "6 10 6");
    expect(t,
           "a\tb\x01"
           "b",
           false, "6 0"); /* controls vanish; "_b" is no start of a word */
    expect(t, "\xE2\x80\x8B", false, "");
    expect(t, "[CLS]a[SEP]", true, "1 6 2");
    assert_true(tokenizer_bos(t) == 1 && tokenizer_eos(t) == 2 && tokenizer_add_bos(t));
    tokenizer_close(&t);
}

static void words_beyond_100_characters_are_unknown(void **state)
{
    struct tokenizer *t = wpm_tokenizer();
    struct buf text = {0};
    buf_puts(&text, "a");
    for (int i = 0; i < 99; i++)
        buf_puts(&text, "b");
    struct token_list l = {0};
    struct err e;
    unit_ok(tokenizer_encode(t, text.data, text.len, false, &l, &e), &e);
    assert_int_equal(l.count, 100);
    l.count = 0;
    buf_puts(&text, "b");
    unit_ok(tokenizer_encode(t, text.data, text.len, false, &l, &e), &e);
    assert_true(l.count == 1 && l.ids[0] == 0);
    free(l.ids);
    buf_done(&text);
    tokenizer_close(&t);
}

/* ---- files that are wrong -------------------------------------------------------------------- */

static void refuse(struct made *m, enum err_code code, const char *says)
{
    struct tokenizer *t = NULL;
    struct err e = {0};
    unit_code(made_tokenizer(m, &t, &e), code, &e);
    unit_says(&e, says);
    assert_null(t);
    made_done(m);
}

static const struct made_token some[] = {{"a", 0, 0}, {"b", 0, 0}};

static void what_is_missing_or_unknown_is_named(void **state)
{
    struct made m = {0};
    made_u32(&m, "x", 1);
    refuse(&m, ERR_CORRUPT, "tokenizer.ggml.model");
    m = (struct made){0};
    made_vocab(&m, "t5", some, 2);
    refuse(&m, ERR_UNSUPPORTED, "t5");
    m = (struct made){0};
    made_str(&m, "tokenizer.ggml.model", "llama");
    refuse(&m, ERR_CORRUPT, "tokenizer.ggml.tokens");
    m = (struct made){0};
    made_vocab(&m, "gpt2", some, 2);
    refuse(&m, ERR_CORRUPT, "tokenizer.ggml.merges");
    m = (struct made){0};
    made_vocab(&m, "bert", some, 2);
    refuse(&m, ERR_CORRUPT, "unknown_token_id");
    m = (struct made){0};
    made_byte_vocab(&m, "brand-new", "", NULL, 0, (const char *const[]){"a b"}, 1);
    refuse(&m, ERR_UNSUPPORTED, "brand-new");
}

static void wrong_values_are_named(void **state)
{
    static const char *const bad_merges[] = {"ab", "a b", ""};
    for (size_t i = 0; i < BASE_COUNT(bad_merges); i += 2) {
        struct made m = {0};
        made_byte_vocab(&m, "gpt-2", "", NULL, 0, &bad_merges[i], 1);
        refuse(&m, ERR_CORRUPT, "merges");
    }
    struct made m = {0};
    made_vocab(&m, "llama", some, 2);
    made_u32(&m, "tokenizer.ggml.eos_token_id", 2);
    refuse(&m, ERR_CORRUPT, "eos_token_id");
    m = (struct made){0};
    made_str(&m, "tokenizer.ggml.model", "llama");
    made_strs(&m, "tokenizer.ggml.tokens", (const char *const[]){"a", "b"}, 2);
    struct buf one = {0};
    const uint32_t kind = GGUF_I32;
    const uint64_t count = 1;
    buf_append(&one, &kind, 4);
    buf_append(&one, &count, 8);
    buf_append(&one, &kind, 4);
    made_kv(&m, "tokenizer.ggml.token_type", GGUF_ARRAY, one.data, one.len);
    buf_done(&one);
    refuse(&m, ERR_CORRUPT, "token_type");
    m = (struct made){0};
    made_vocab(&m, "llama", some, 2);
    made_str(&m, "tokenizer.ggml.add_bos_token", "yes");
    refuse(&m, ERR_CORRUPT, "add_bos_token");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_follow_their_rank),
        cmocka_unit_test(long_pieces_merge_as_short_ones),
        cmocka_unit_test(special_tokens_match_as_asked),
        cmocka_unit_test(invalid_utf8_becomes_replacement_characters),
        cmocka_unit_test(bytes_without_a_token_vanish),
        cmocka_unit_test(whole_pieces_pass_merges_where_the_family_says_so),
        cmocka_unit_test(tokens_give_their_bytes),
        cmocka_unit_test(a_stream_holds_torn_characters_back),
        cmocka_unit_test(scores_decide_and_ties_go_left),
        cmocka_unit_test(what_no_piece_covers_is_written_in_bytes),
        cmocka_unit_test(a_blank_goes_in_front_of_text),
        cmocka_unit_test(control_tokens_can_not_be_spelled),
        cmocka_unit_test(words_are_spelled_with_the_longest_pieces),
        cmocka_unit_test(words_beyond_100_characters_are_unknown),
        cmocka_unit_test(what_is_missing_or_unknown_is_named),
        cmocka_unit_test(wrong_values_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
