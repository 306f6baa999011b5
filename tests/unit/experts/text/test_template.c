/* Chat templates: what is refused, where the message points, time, variables, and threads. */
#include "tests/unit/experts/text/text.h"

#include <pthread.h>

/* ---- refusals -------------------------------------------------------------------------------- */

static void unsupported_syntax_is_named_with_its_line(void **state)
{
    text_fails("a\nb\n{% include 'x' %}", ERR_UNSUPPORTED, "line 3: the tag 'include'");
    text_fails("{% extends 'x' %}", ERR_UNSUPPORTED, "extends");
    text_fails("{% import 'x' as y %}", ERR_UNSUPPORTED, "import");
    text_fails("{% do x %}", ERR_UNSUPPORTED, "'do'");
    text_fails("{% frobnicate %}", ERR_UNSUPPORTED, "unknown tag 'frobnicate'");
    text_fails("\n{{ s | nofilter }}", ERR_UNSUPPORTED, "line 2: the filter 'nofilter'");
    text_fails("{{ s is notest }}", ERR_UNSUPPORTED, "'notest'");
    text_fails("{{ s | urlize }}", ERR_UNSUPPORTED, "urlize");
    text_fails("{% autoescape true %}{% endautoescape %}", ERR_UNSUPPORTED, "autoescape");
    text_fails("{{ self.title() }}", ERR_UNSUPPORTED, "self");
    text_fails("{{ '\\N{DASH}' }}", ERR_UNSUPPORTED, "\\N");
    text_fails("{{ 99999999999999999999 }}", ERR_UNSUPPORTED, "64 bits");
}

/* Seen without rendering: in a branch that is never taken. */
static void unsupported_filters_are_seen_when_parsed(void **state)
{
    static const char source[] = "{% if false %}{{ s | pprint }}{% endif %}";
    struct chat_template *t = NULL;
    struct err e;
    unit_code(template_parse(source, sizeof(source) - 1, &t, &e), ERR_UNSUPPORTED, &e);
    unit_says(&e, "pprint");
    assert_null(t);
}

static void syntax_errors_name_the_line(void **state)
{
    text_fails("a\n{% if t %}\nunclosed", ERR_INVALID, "line 2: the 'if' tag is not closed");
    text_fails("{% endif %}", ERR_INVALID, "endif");
    text_fails("{% for x in l %}{% endif %}", ERR_INVALID, "endif");
    text_fails("{% for x l %}{% endfor %}", ERR_INVALID, "'in'");
    text_fails("{% set 1 = 2 %}", ERR_INVALID, "assigned");
    text_fails("{% for loop in l %}{% endfor %}", ERR_INVALID, "loop");
    text_fails("{% break %}", ERR_INVALID, "outside");
    text_fails("{{ 1 +", ERR_INVALID, "not closed");
    text_fails("{{ (1 }}", ERR_INVALID, "");
    text_fails("{{ 1) }}", ERR_INVALID, "unexpected ')'");
    text_fails("{{ 'a }}", ERR_INVALID, "string");
    text_fails("{# a", ERR_INVALID, "comment");
    text_fails("{% raw %}a", ERR_INVALID, "raw");
    text_fails("{{ }}", ERR_INVALID, "expression");
    text_fails("{{ a b }}", ERR_INVALID, "'b'");
    text_fails("{{ ! }}", ERR_INVALID, "'!'");
    text_fails("{{ f(a=1, 2) }}", ERR_INVALID, "order");
    text_fails("{% macro m(a=1, b) %}{% endmacro %}", ERR_INVALID, "default");
    text_fails("{% call s %}{% endcall %}", ERR_INVALID, "call");
}

static void errors_while_rendering_name_cause_and_line(void **state)
{
    text_fails("\n\n{{ n + 'x' }}", ERR_INVALID,
               "line 3: unsupported operand type(s) for +: 'NoneType'");
    text_fails("{{ 'x' + 1 }}", ERR_INVALID, "can only concatenate str (not \"int\")");
    text_fails("{{ nope.attr }}", ERR_INVALID, "'nope' is undefined");
    text_fails("{{ d.nope.attr }}", ERR_INVALID, "'dict object' has no attribute 'nope'");
    text_fails("{{ nope() }}", ERR_INVALID, "'nope' is undefined");
    text_fails("{{ s() }}", ERR_INVALID, "'str' object is not callable");
    text_fails("{{ 1 / 0 }}", ERR_INVALID, "zero");
    text_fails("{{ 1 < 'a' }}", ERR_INVALID, "'int' and 'str'");
    text_fails("{{ [1, 'a'] | sort }}", ERR_INVALID, "not supported between");
    text_fails("{% for x in n %}{% endfor %}", ERR_INVALID, "'NoneType' object is not iterable");
    text_fails("{% for a, b in [(1,)] %}{% endfor %}", ERR_INVALID, "not enough values");
    text_fails("{% for a, b in [(1, 2, 3)] %}{% endfor %}", ERR_INVALID, "too many values");
    text_fails("{% set d.x = 1 %}", ERR_INVALID, "non-namespace");
    text_fails("{{ {[1]: 2} }}", ERR_INVALID, "unhashable type: 'list'");
    text_fails("{{ n | length }}", ERR_INVALID, "len()");
    text_fails("{{ l | map('x') | list }}", ERR_UNSUPPORTED, "'x'");
    text_fails("{{ nope | tojson }}", ERR_INVALID, "JSON");
    text_fails("{{ s.nope() }}", ERR_INVALID, "nope");
    text_fails("{{ '%d' % 'a' }}", ERR_INVALID, "number is required");
    text_fails("{{ '{}'.format() }}", ERR_INVALID, "out of range");
    text_fails("{{ 9223372036854775807 + 1 }}", ERR_UNSUPPORTED, "64 bits");
    text_fails("{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", ERR_INVALID, "argument");
    text_fails("{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", ERR_INVALID, "'b'");
    text_fails("{% for x in l %}{{ loop(l) }}{% endfor %}", ERR_INVALID, "recursive");
    text_fails("{{ s | trim(1, 2) }}", ERR_INVALID, "trim");
    text_fails("{{ s | indent(widht=2) }}", ERR_INVALID, "widht");
}

static void raised_messages_come_through_as_they_are(void **state)
{
    struct buf out = {0};
    struct err e = {0};
    assert_int_equal(
        text_render("{{ raise_exception('Roles must alternate: \\u00e9' ~ 7) }}", "{}", &out, &e),
        ERR_INVALID);
    assert_string_equal(e.msg, "Roles must alternate: \xC3\xA9"
                               "7");
    buf_done(&out);
}

/* ---- variables ------------------------------------------------------------------------------- */

static void variables_are_those_of_the_chat_code(void **state)
{
    struct chat_template *t = NULL;
    struct err e;
    struct buf out = {0};
    static const char source[] =
        "{{ messages | length }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt "
        "}}"
        "{{ bos_token }}{{ eos_token is defined }}{{ extra1 }}{{ (extra2 | d({})).x }}";
    unit_ok(template_parse(source, sizeof(source) - 1, &t, &e), &e);
    struct template_input in = {.messages_json = "[{}]",
                                .bos_token = "<s>",
                                .extra_json = "{\"extra1\": 1, \"extra2\": {\"x\": \"y\"}}"};
    unit_ok(template_render(t, &in, &out, &e), &e);
    assert_string_equal(out.data, "1TrueTrueFalse<s>False1y");
    buf_clear(&out);
    /* What the caller adds wins over what is always there, names of functions included. */
    in.extra_json = "{\"tools\": [1], \"bos_token\": \"B\", \"add_generation_prompt\": true}";
    unit_ok(template_render(t, &in, &out, &e), &e);
    assert_string_equal(out.data, "1FalseTrueTrueBFalse");
    template_close(&t);
    buf_done(&out);
    text_gives("{% set range = 5 %}{{ range }}", "5");
}

static void the_clock_is_an_argument(void **state)
{
    text_gives("{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}|"
               "{{ strftime_now('%A, %B %d, 100%%') }}|{{ strftime_now('') }}",
               "26 Jul 2024|2024-07-26 09:05:03.000000|Friday, July 26, 100%|");
    text_fails("{{ strftime_now('%A' * 3000) }}", ERR_TOO_LARGE, "strftime_now");
    text_fails("{{ strftime_now(1) }}", ERR_INVALID, "strftime_now");
}

static void features_are_listed(void **state)
{
    const char *const *f = template_features();
    size_t n = 0;
    bool filters = false;
    for (; f[n] != NULL; n++)
        filters |= strstr(f[n], "selectattr") != NULL;
    assert_true(n >= 5 && filters);
}

/* Every filter and test the list names exists, and the other way round a few that must not. */
static void the_list_of_features_is_true(void **state)
{
    const char *const *f = template_features();
    for (; *f != NULL; f++) {
        bool is_filters = strncmp(*f, "filters: ", 9) == 0,
             is_tests = strncmp(*f, "tests: ", 7) == 0;
        if (!is_filters && !is_tests)
            continue;
        char *names = mem_strdup(strchr(*f, ' ') + 1), *save = NULL;
        for (char *n = strtok_r(names, ", ", &save); n != NULL; n = strtok_r(NULL, ", ", &save)) {
            if (strcmp(n, "and") == 0)
                break;
            struct chat_template *t = NULL;
            struct err e;
            char *source = mem_format(is_filters ? "{{ s | %s }}" : "{{ s is %s }}", n);
            unit_ok(template_parse(source, strlen(source), &t, &e), &e);
            template_close(&t);
            free(source);
        }
        free(names);
    }
}

/* ---- threads --------------------------------------------------------------------------------- */

struct shared {
    const struct chat_template *t;
    bool same;
};

static void *render_many(void *arg)
{
    struct shared *s = arg;
    struct template_input in = {.messages_json =
                                    "[{\"role\": \"user\", \"content\": \"h\\u00e9\"}]"};
    s->same = true;
    for (int i = 0; i < 200; i++) {
        struct buf out = {0};
        struct err e;
        if (template_render(s->t, &in, &out, &e) != ERR_OK ||
            strcmp(out.data, "user: h\xC3\xA9 2 \xC3\x89") != 0)
            s->same = false;
        buf_done(&out);
    }
    return NULL;
}

static void one_template_renders_in_many_threads(void **state)
{
    enum { THREADS = 4 };
    static const char source[] = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }} "
                                 "{{ m.content | length }} {{ '\\u00e9'[0] | upper }}{% endfor %}";
    struct chat_template *t = NULL;
    struct err e;
    pthread_t threads[THREADS];
    struct shared shared[THREADS];
    unit_ok(template_parse(source, sizeof(source) - 1, &t, &e), &e);
    for (size_t i = 0; i < THREADS; i++) {
        shared[i] = (struct shared){.t = t};
        assert_int_equal(pthread_create(&threads[i], NULL, render_many, &shared[i]), 0);
    }
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (size_t i = 0; i < THREADS; i++)
        assert_true(shared[i].same);
    template_close(&t);
}

int main(void)
{
    (void)setenv("TZ", "UTC", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unsupported_syntax_is_named_with_its_line),
        cmocka_unit_test(unsupported_filters_are_seen_when_parsed),
        cmocka_unit_test(syntax_errors_name_the_line),
        cmocka_unit_test(errors_while_rendering_name_cause_and_line),
        cmocka_unit_test(raised_messages_come_through_as_they_are),
        cmocka_unit_test(variables_are_those_of_the_chat_code),
        cmocka_unit_test(the_clock_is_an_argument),
        cmocka_unit_test(features_are_listed),
        cmocka_unit_test(the_list_of_features_is_true),
        cmocka_unit_test(one_template_renders_in_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
