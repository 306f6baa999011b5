/* Seeded mutations of templates, their variables and texts: anything may come out but a crash, a
 * hang or bytes that are not UTF-8. Meant to run under the sanitizers, and quick enough without. */
#include "tests/unit/experts/text/text.h"

static const char *const templates[] = {
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m.content | trim }}{%- if "
    "loop.last "
    "and add_generation_prompt %}{{ bos_token }}{% endif %}{% endfor -%}",
    "{% macro f(x, y=2, *z) %}{{ x }}{{ caller() }}{% endmacro %}{% call(a) f(1, y=[1, {'k': "
    "(1,)}]) %}{{ a "
    "}}{% endcall %}",
    "{% set ns = namespace(i=0, l=[]) %}{% for x in range(9) if x is odd %}{% set ns.i = ns.i + x "
    "** 2 // 3 "
    "%}{% set ns.l = ns.l + [x] %}{% else %}none{% endfor %}{{ ns.i }}{{ ns.l | tojson(indent=2) "
    "}}",
    "{{ messages | selectattr('role', 'in', ['user']) | map(attribute='content') | list | join(', "
    "') | "
    "replace('a', 'b') | indent(4, true) | truncate(20, true, '..', 0) }}",
    "{{ '%-5s|%+d|%05.2f|%x' % ('a', 3, 2.5, 255) }}{{ '{0[k]:>{w}} {b!r}'.format({'k': 1}, b='x', "
    "w=5) }}",
    "{% for n in [1, [2, [3, []]]] recursive %}{{ n if n is number else loop(n) }}{{ loop.depth "
    "}}{{ "
    "loop.previtem }}{% break %}{% endfor %}",
    "{# c #}{% raw %}{{ x }}{% endraw %}{% filter upper %}a{% set q | lower %}B{% endset %}{{ q "
    "}}{% "
    "endfilter %}{% with a = 1, b = a %}{{ a ~ b }}{% endwith %}",
    "{{ messages[::-1][0]['content'][-3:].split('e', 1) }}{{ [3, 1, 2] | sort(reverse=true) | "
    "batch(2, 'x') "
    "| list }}{{ {'b': 1, 'a': 2} | dictsort }}{{ 'x' if messages else 'y' if t }}",
    "{{ 1 + 2 * 3 - 4 / 5 // 6 % 7 ** 2 ~ 'a' }}{{ not 1 < 2 <= 3 != 4 in [4] and none or true "
    "}}{{ -+-1 }}",
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% elif tools is defined %}{{ "
    "tools | "
    "length }}{% else %}{{ raise_exception('no ' ~ messages | length) }}{% endif %}",
};

static const char json[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"h\\u00e9llo \\ud83d\\ude00\"}, {\"role\": "
    "\"assistant\", \"content\": null, \"tool_calls\": [{\"function\": {\"name\": \"f\", "
    "\"arguments\": "
    "{\"a\": [1, 2.5, true]}}}]}], \"tools\": [], \"t\": -9223372036854775807}";

/* Pieces that mutations put in: the language's own words. */
static const char *const words[] = {
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "-",
    "+",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ".",
    ",",
    ":",
    "|",
    "~",
    "*",
    "**",
    "//",
    "'",
    "\"",
    "\\",
    "\n",
    " ",
    "if",
    "else",
    "endif",
    "for",
    "in",
    "endfor",
    "set",
    "loop",
    "is",
    "not",
    "and",
    "or",
    "none",
    "recursive",
    "macro",
    "endmacro",
    "call",
    "range",
    "9",
    "9223372036854775807",
    "1e308",
    "0",
    "length",
    "join",
    "tojson",
    "sort",
    "map",
    "select",
    "first",
    "format",
    "\xC3\xA9",
    "\xE2\x80\xA8",
    "%s",
    "[::",
    "|list",
    "|batch(",
    "*1000",
    "messages",
    "caller()",
};

static void mutate(struct rng *r, struct buf *b)
{
    uint64_t edits = 1 + rng_below(r, 1 + rng_below(r, 5)); /* mostly one or two */
    for (uint64_t i = 0; i < edits; i++) {
        struct buf next = {0};
        size_t at = (size_t)rng_below(r, b->len + 1), cut = 0;
        const char *put = "";
        size_t put_len = 0;
        switch (rng_below(r, 4)) {
        case 0: /* insert a word */
            put = words[rng_below(r, BASE_COUNT(words))];
            put_len = strlen(put);
            break;
        case 1: /* delete a stretch */
            cut = (size_t)rng_below(r, BASE_MIN(b->len - at, (size_t)12) + 1);
            break;
        case 2: /* repeat a stretch */
            put = b->data + at;
            put_len = (size_t)rng_below(r, BASE_MIN(b->len - at, (size_t)40) + 1);
            break;
        default: /* replace by a word */
            cut = (size_t)rng_below(r, BASE_MIN(b->len - at, (size_t)6) + 1);
            put = words[rng_below(r, BASE_COUNT(words))];
            put_len = strlen(put);
        }
        buf_append(&next, b->data, at);
        buf_append(&next, put, put_len);
        buf_append(&next, b->data + at + cut, b->len - at - cut);
        buf_done(b);
        *b = next;
    }
}

static size_t rounds(size_t usual)
{
    const char *text = getenv("SWITCHYARD_ROUNDS");
    return text != NULL ? strtoull(text, NULL, 10) : usual;
}

static void mutated_templates_end(void **state)
{
    struct rng r;
    size_t rendered = 0, parsed = 0, count = rounds(4000);
    rng_init(&r, unit_seed());
    for (size_t i = 0; i < count; i++) {
        const char *from = templates[rng_below(&r, BASE_COUNT(templates))];
        struct buf source = {0}, out = {0};
        struct chat_template *t = NULL;
        struct err e = {0};
        buf_puts(&source, from);
        mutate(&r, &source);
        if (template_parse(source.data, source.len, &t, &e) == ERR_OK) {
            struct template_input in = {.messages_json = "[]",
                                        .extra_json = json,
                                        .bos_token = "<s>",
                                        .add_generation_prompt = true};
            parsed++;
            if (template_render(t, &in, &out, &e) == ERR_OK) {
                rendered++;
                assert_true(utf8_valid(out.data != NULL ? out.data : "", out.len));
            }
        }
        if (t == NULL)
            assert_true(e.msg[0] != '\0');
        template_close(&t);
        buf_done(&source);
        buf_done(&out);
    }
    print_message("%zu templates: %zu parsed, %zu rendered\n", count, parsed, rendered);
    assert_true(count < 1000 || (parsed > count / 20 && rendered > count / 50));
}

static void mutated_variables_end(void **state)
{
    struct rng r;
    size_t count = rounds(1500);
    rng_init(&r, unit_seed());
    for (size_t i = 0; i < count; i++) {
        struct buf vars = {0}, out = {0};
        struct chat_template *t = NULL;
        struct err e = {0};
        const char *source = templates[rng_below(&r, BASE_COUNT(templates))];
        buf_puts(&vars, json);
        mutate(&r, &vars);
        if (template_parse(source, strlen(source), &t, &e) == ERR_OK) {
            struct template_input in = {.messages_json = "[]", .extra_json = vars.data};
            enum err_code rc = template_render(t, &in, &out, &e);
            assert_true(rc == ERR_OK || e.msg[0] != '\0');
            template_close(&t);
        }
        buf_done(&vars);
        buf_done(&out);
    }
}

/* ---- texts ----------------------------------------------------------------------------------- */

static struct tokenizer *tokenizers[3];

static int open_tokenizers(void **state)
{
    static const struct made_token more[] = {{"ab", 0, 0},
                                             {"<|end|>", 3, 0},
                                             {"<tool>", 4, 0},
                                             {"abab", 0, 0},
                                             {"\xC4\xA0"
                                              "a",
                                              0, 0}};
    static const char *const merges[] = {"a b", "\xC4\xA0 a", "ab ab"};
    static const struct made_token pieces[] = {{"<unk>", 2, 0},
                                               {"<s>", 3, 0},
                                               {"</s>", 3, 0},
                                               {"\xE2\x96\x81", 0, -3},
                                               {"a", 0, -4},
                                               {"ab", 0, -1},
                                               {"b", 0, -5},
                                               {"\xE2\x96\x81"
                                                "a",
                                                0, -2},
                                               {"<0xC3>", 6, 0},
                                               {"aba", 5, -1}};
    static const struct made_token words_of[] = {{"[UNK]", 3, 0},
                                                 {"\xE2\x96\x81"
                                                  "a",
                                                  0, 0},
                                                 {"b", 0, 0},
                                                 {"\xE2\x96\x81"
                                                  "ab",
                                                  0, 0}};
    struct made m[3] = {{{0}}, {{0}}, {{0}}};
    struct err e;
    made_byte_vocab(&m[0], "llama-bpe", "", more, BASE_COUNT(more), merges, BASE_COUNT(merges));
    made_vocab(&m[1], "llama", pieces, BASE_COUNT(pieces));
    made_vocab(&m[2], "bert", words_of, BASE_COUNT(words_of));
    made_u32(&m[2], "tokenizer.ggml.unknown_token_id", 0);
    for (size_t i = 0; i < 3; i++) {
        unit_ok(made_tokenizer(&m[i], &tokenizers[i], &e), &e);
        made_done(&m[i]);
    }
    return 0;
}

static int close_tokenizers(void **state)
{
    for (size_t i = 0; i < 3; i++)
        tokenizer_close(&tokenizers[i]);
    return 0;
}

/* Characters of all lengths, runs, raw bytes, and the vocabularies' own. */
static void random_text(struct rng *r, struct buf *out)
{
    static const char *const bits[] = {"a",
                                       "b",
                                       " ",
                                       "ab",
                                       "<|end|>",
                                       "<tool>",
                                       "\n",
                                       "\xC3\xA9",
                                       "\xE4\xB8\xAD",
                                       "\xF0\x9F\x98\x80",
                                       "\xCC\x81",
                                       "1",
                                       "'s",
                                       "!",
                                       "\xC2\xA0",
                                       "\xE2\x96\x81",
                                       "<s>",
                                       "I\xCC\x87",
                                       "\r\n"};
    for (uint64_t n = rng_below(r, 60); n > 0; n--) {
        uint64_t repeat = rng_below(r, 20) == 0 ? rng_below(r, 200) : 1;
        const char *bit = bits[rng_below(r, BASE_COUNT(bits))];
        char byte = (char)rng_below(r, 256);
        bool raw = rng_below(r, 6) == 0;
        for (uint64_t k = 0; k < repeat; k++)
            buf_append(out, raw ? &byte : bit, raw ? 1 : strlen(bit));
    }
}

static void random_texts_are_encoded_by_every_model(void **state)
{
    struct rng r;
    rng_init(&r, unit_seed());
    for (size_t i = 0, count = rounds(6000); i < count; i++) {
        struct buf text = {0};
        random_text(&r, &text);
        for (size_t k = 0; k < 3; k++) {
            struct token_list l = {0};
            struct detok d = {0};
            struct buf shown = {0};
            struct err e;
            unit_ok(tokenizer_encode(tokenizers[k], text.data, text.len, rng_below(&r, 2), &l, &e),
                    &e);
            for (size_t t = 0; t < l.count; t++) {
                assert_in_range(l.ids[t], 0, tokenizer_vocab(tokenizers[k]) - 1);
                detok_push(&d, tokenizers[k], l.ids[t], &shown);
            }
            detok_end(&d, &shown);
            assert_true(utf8_valid(shown.data != NULL ? shown.data : "", shown.len));
            free(l.ids);
            buf_done(&shown);
        }
        /* The byte-level one loses nothing that was valid. */
        if (utf8_valid(text.data != NULL ? text.data : "", text.len)) {
            struct buf back = text_round_trip(tokenizers[0], text.data, text.len);
            assert_int_equal(back.len, text.len);
            if (text.len > 0)
                assert_memory_equal(back.data, text.data, text.len);
            buf_done(&back);
        }
        buf_done(&text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mutated_templates_end),
        cmocka_unit_test(mutated_variables_end),
        cmocka_unit_test_setup_teardown(random_texts_are_encoded_by_every_model, open_tokenizers,
                                        close_tokenizers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
