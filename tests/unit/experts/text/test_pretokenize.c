/* Pre-tokenizers: the shared cuts of every family, a few of our own, and runs of any length. */
#include "tests/unit/experts/text/text.h"

#include "experts/text/tokenizer_priv.h"

/* A name of each family. */
static const struct {
    const char *family, *name;
} families[] = {
    {"gpt2", "gpt-2"},
    {"digits+gpt2", "smollm"},
    {"qwen2", "qwen2"},
    {"llama3", "llama-bpe"},
    {"deepseek-llm", "deepseek-llm"},
    {"deepseek-coder", "deepseek-coder"},
    {"deepseek-v3", "deepseek-v3"},
    {"falcon", "falcon"},
    {"tekken", "tekken"},
    {"bloom", "bloom"},
    {"viking", "viking"},
    {"default", "default"},
};

static struct pretokenizer *open_name(const char *name)
{
    struct pretokenizer *p = NULL;
    struct err e;
    unit_ok(pretokenizer_open(name, strlen(name), &p, &e), &e);
    return p;
}

/* Pieces joined with U+0001, which no test text has, and how many. */
struct cut {
    struct buf joined;
    size_t count, bytes;
};

static void add_piece(void *ctx, const char *piece, size_t len)
{
    struct cut *c = ctx;
    assert_true(len > 0);
    if (c->count > 0)
        buf_append(&c->joined, "\1", 1);
    buf_append(&c->joined, piece, len);
    c->count++;
    c->bytes += len;
}

static void count_piece(void *ctx, const char *piece, size_t len)
{
    struct cut *c = ctx;
    c->count++;
    c->bytes += len;
}

static void expect_cut(const struct pretokenizer *p, const char *text, size_t len,
                       const char *wanted, size_t wanted_len)
{
    struct cut c = {0};
    struct err e;
    char a[240], b[240];
    unit_ok(pretokenizer_split(p, text, len, add_piece, &c, &e), &e);
    if (c.joined.len != wanted_len ||
        (wanted_len > 0 && memcmp(c.joined.data, wanted, wanted_len) != 0))
        fail_msg("cut as \"%s\", not \"%s\"", text_show(c.joined.data, c.joined.len, a),
                 text_show(wanted, wanted_len, b));
    buf_done(&c.joined);
}

static void check_line(void *ctx, const json_t *o)
{
    size_t len, family_len;
    const char *family = text_member(o, "family", &family_len),
               *text = text_member(o, "text", &len);
    const json_t *pieces = json_object_get(o, "pieces");
    struct buf joined = {0};
    struct pretokenizer **open = ctx;
    for (size_t i = 0; i < json_array_size(pieces); i++) {
        const json_t *s = json_array_get(pieces, i);
        if (i > 0)
            buf_append(&joined, "\1", 1);
        buf_append(&joined, json_string_value(s), json_string_length(s));
    }
    for (size_t i = 0; i < BASE_COUNT(families); i++) {
        if (strcmp(families[i].family, family) == 0) {
            expect_cut(open[i], text, len, joined.data, joined.len);
            buf_done(&joined);
            return;
        }
    }
    fail_msg("the family %s has no name here", family);
}

static void shared_cuts_of_every_family_are_met(void **state)
{
    struct pretokenizer *open[BASE_COUNT(families)];
    for (size_t i = 0; i < BASE_COUNT(families); i++)
        open[i] = open_name(families[i].name);
    bool here = text_each_line("fixtures/tokenizers/presplit.jsonl", check_line, open);
    for (size_t i = 0; i < BASE_COUNT(families); i++)
        pretokenizer_close(&open[i]);
    if (!here)
        skip();
}

static void check_names(const json_t *family)
{
    const json_t *names = json_object_get(family, "names"), *name;
    struct err e;
    size_t i;
    json_array_foreach(names, i, name)
    {
        struct pretokenizer *p = NULL;
        unit_ok(pretokenizer_open(json_string_value(name), json_string_length(name), &p, &e), &e);
        /* The table's flags hold for the models the note lists, not for all that share the regex.
         */
        const char *n = json_string_value(name);
        bool exempt =
            strcmp(n, "dbrx") == 0 || strcmp(n, "smaug-bpe") == 0 || strcmp(n, "chatglm-bpe") == 0;
        bool ignore = json_is_true(json_object_get(family, "ignore_merges")) && !exempt;
        bool add_bos = json_is_true(json_object_get(family, "add_bos_default")) && !exempt;
        assert_int_equal(pretokenizer_ignore_merges(p), ignore);
        assert_int_equal(pretokenizer_add_bos(p), add_bos);
        pretokenizer_close(&p);
        assert_null(p);
    }
}

static void every_listed_name_is_known(void **state)
{
    char *path = unit_shared("fixtures/tokenizers/pretypes.json");
    if (path == NULL)
        skip();
    json_t *root = json_load_file(path, 0, NULL);
    const char *key;
    json_t *family;
    assert_non_null(root);
    json_object_foreach(json_object_get(root, "families"), key, family) check_names(family);
    json_decref(root);
    free(path);
}

static void cut(const char *name, const char *text, const char *wanted)
{
    struct pretokenizer *p = open_name(name);
    expect_cut(p, text, strlen(text), wanted, strlen(wanted));
    pretokenizer_close(&p);
}

static void families_cut_as_their_models_do(void **state)
{
    cut("gpt-2", "I'm 123 a  b\n", "I\1'm\1 123\1 a\1 \1 b\1\n");
    cut("smollm", "a 123",
        "a\1 \1"
        "1\1"
        "2\1"
        "3");
    cut("qwen2", "I'M 12\n\n x",
        "I\1'M\1 \1"
        "1\1"
        "2\1\n\n\1 x");
    cut("llama-bpe", "12345 (x)",
        "123\1"
        "45\1 (\1x\1)");
    cut("deepseek-llm", "ab  \n12",
        "ab\1  \1\n\1"
        "12");
    cut("deepseek-llm", "ab c  ", "ab\1 c\1  ");
    cut("falcon", "12345,$x",
        "123\1"
        "45\1,$\1x");
    cut("bloom", "a b,c", "a\1 b\1,\1c");
    cut("tekken", "HelloWorld ABCdef", "Hello\1World\1 ABCdef");
    cut("", "ab1234",
        "ab\1"
        "123\1"
        "4");
}

/* U+0085 is white space, U+001C, U+180E and U+200B are not. */
static void white_space_is_the_unicode_property(void **state)
{
    cut("gpt-2", "a\xC2\x85 b", "a\1\xC2\x85\1 b");
    cut("gpt-2",
        "a\x1C"
        "b",
        "a\1\x1C\1"
        "b");
    cut("gpt-2", "a \xE1\xA0\x8E", "a\1 \xE1\xA0\x8E");
    cut("gpt-2", "a \xE2\x80\x8B", "a\1 \xE2\x80\x8B");
}

/* Half a million of one character, in every family, with and without something behind: nothing may
 * be lost, and the time must not be that of a square. */
static void long_runs_are_cut_without_loss(void **state)
{
    static const char *const units[] = {" ",
                                        "\n",
                                        "a",
                                        "A",
                                        "1",
                                        "!",
                                        "\xE4\xB8\x80",
                                        "\xCC\x81",
                                        " a",
                                        "\r\n",
                                        "\t \n",
                                        "'s",
                                        "\xF0\x9F\x98\x80"};
    enum { REPEATS = 300000 };
    for (size_t f = 0; f < BASE_COUNT(families); f++) {
        struct pretokenizer *p = open_name(families[f].name);
        for (size_t u = 0; u < BASE_COUNT(units); u++) {
            struct buf text = {0};
            struct cut c = {0};
            struct err e;
            for (size_t i = 0; i < REPEATS; i++)
                buf_puts(&text, units[u]);
            buf_puts(&text, "x");
            unit_ok(pretokenizer_split(p, text.data, text.len, count_piece, &c, &e), &e);
            assert_int_equal(c.bytes, text.len);
            buf_done(&text);
        }
        pretokenizer_close(&p);
    }
}

static void unknown_names_are_refused_by_name(void **state)
{
    struct pretokenizer *p = NULL;
    struct err e;
    unit_code(pretokenizer_open("new-model", 9, &p, &e), ERR_UNSUPPORTED, &e);
    unit_says(&e, "new-model");
    unit_code(pretokenizer_open("gpt-", 4, &p, &e), ERR_UNSUPPORTED, &e);
    unit_code(pretokenizer_open("gpt-2\0x", 7, &p, &e), ERR_UNSUPPORTED, &e);
    assert_null(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_cuts_of_every_family_are_met),
        cmocka_unit_test(every_listed_name_is_known),
        cmocka_unit_test(families_cut_as_their_models_do),
        cmocka_unit_test(white_space_is_the_unicode_property),
        cmocka_unit_test(long_runs_are_cut_without_loss),
        cmocka_unit_test(unknown_names_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
