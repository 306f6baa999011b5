/* A template can not hang, crash or flood the server, and can not look behind its values. */
#include "tests/unit/experts/text/text.h"

static void steps_are_limited(void **state)
{
    text_fails("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
               ERR_TOO_LARGE, "steps");
    text_fails("{% for a in range(99999) %}{% if a in range(99999) %}{% endif %}{% endfor %}",
               ERR_TOO_LARGE, "steps");
}

static void recursion_is_limited(void **state)
{
    text_fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ERR_TOO_LARGE, "deep");
    text_fails("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", ERR_TOO_LARGE, "deep");
    /* A list in a list in a list: printing, comparing and writing it as JSON recurse. */
    static const char nest[] = "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}"
                               "{% set ns.x = [ns.x] %}{% endfor %}";
    static const char *const uses[] = {"{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x == [ns.x] }}"};
    for (size_t i = 0; i < BASE_COUNT(uses); i++) {
        char *source = mem_format("%s%s", nest, uses[i]);
        if (i < 2)
            text_fails(source, ERR_TOO_LARGE, "deep");
        free(source);
    }
    /* Two macros that call one another through a test of loops and filters. */
    text_fails(
        "{% macro a(n) %}{% for i in [n] | map('string') %}{{ b(n) }}{% endfor %}{% endmacro %}"
        "{% macro b(n) %}{% filter upper %}{{ a(n) }}{% endfilter %}{% endmacro %}{{ a(1) }}",
        ERR_TOO_LARGE, "deep");
}

static void memory_and_text_are_limited(void **state)
{
    text_fails("{{ 'x' * 1000000000000 }}", ERR_TOO_LARGE, "memory");
    text_fails("{{ 'x' * 9223372036854775807 }}", ERR_TOO_LARGE, "memory");
    text_fails("{{ [1] * 1000000000 }}", ERR_TOO_LARGE, "memory");
    text_fails("{{ 'x'.center(4000000000) }}", ERR_TOO_LARGE, "memory");
    text_fails("{{ 'x'.zfill(4000000000000) }}", ERR_TOO_LARGE, "memory");
    text_fails("{{ ('x' * 20000000) }}", ERR_TOO_LARGE, "16 MiB");
    text_fails("{% for i in range(1000) %}{{ 'x' * 100000 }}{% endfor %}", ERR_TOO_LARGE, "16 MiB");
    text_fails("{% set ns = namespace(s='x') %}{% for i in range(60) %}"
               "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
               ERR_TOO_LARGE, "memory");
    text_fails("{{ ('x' * 100000).replace('x', 'y' * 100000) }}", ERR_TOO_LARGE, "memory");
    text_fails("{{ ('x' * 100000) | replace('', 'y' * 100000) }}", ERR_TOO_LARGE, "memory");
    text_fails("{{ (['y' * 100000] * 100000) | join }}", ERR_TOO_LARGE, "memory");
    text_fails("{{ ('x\\n' * 100000) | indent('y' * 100000) }}", ERR_TOO_LARGE, "memory");
    text_fails("{{ 'x' | indent(100000000000) }}", ERR_TOO_LARGE, "memory");
    /* A value that shares its parts is small and prints without end. */
    text_fails("{% set ns = namespace(x=['xxxxxxxxxx']) %}{% for i in range(60) %}"
               "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
               ERR_TOO_LARGE, "");
    text_fails("{{ range(100001) }}", ERR_INVALID, "100000");
    text_fails("{{ range(-9223372036854775807, 9223372036854775807) }}", ERR_INVALID, "100000");
}

static void building_text_by_adding_is_linear(void **state)
{
    /* 20,000 rounds over a text that grows to 1 MB: copied each time it would be 10 GB. */
    text_gives("{% set ns = namespace(s='') %}{% for i in range(20000) %}"
               "{% set ns.s = ns.s + '0123456789012345678901234567890123456789012345678' %}"
               "{% endfor %}{{ ns.s | length }}",
               "980000");
    /* What was grown in place does not change what others hold. */
    text_gives(
        "{% set a = s + 'x' %}{% set b = a + 'y' %}{% set c = a + 'z' %}{{ a }}{{ b }}{{ c }}",
        "Hello, WorldxHello, WorldxyHello, Worldxz");
}

static void nesting_of_the_source_is_limited(void **state)
{
    static const struct {
        const char *open, *middle, *close;
    } forms[] = {
        {"(", "1", ")"},           {"[", "1", "]"},   {"not ", "1", ""},   {"-", "1", ""},
        {"{1:", "1", "}"},         {"1 + ", "1", ""}, {"i.x", "", ""},     {"f(", "", ")"},
        {"1 if 1 else ", "1", ""}, {"1 ~ ", "1", ""}, {"1 and ", "1", ""}, {"i|", "d", ""},
    };
    for (size_t i = 0; i < BASE_COUNT(forms); i++) {
        struct buf source = {0}, out = {0};
        struct err e = {0};
        buf_puts(&source, "{{ ");
        for (int k = 0; k < 20000; k++)
            buf_puts(&source, forms[i].open);
        buf_puts(&source, forms[i].middle);
        for (int k = 0; k < 20000; k++)
            buf_puts(&source, forms[i].close);
        buf_puts(&source, " }}");
        enum err_code rc = text_render(source.data, "{}", &out, &e);
        assert_int_not_equal(rc, ERR_OK);
        buf_done(&source);
        buf_done(&out);
    }
    struct buf blocks = {0}, out = {0};
    struct err e = {0};
    for (int k = 0; k < 20000; k++)
        buf_puts(&blocks, "{% if 1 %}");
    assert_int_equal(text_render(blocks.data, "{}", &out, &e), ERR_UNSUPPORTED);
    unit_says(&e, "deep");
    buf_done(&blocks);
    buf_done(&out);
}

static void long_sources_and_bad_bytes_are_refused(void **state)
{
    struct chat_template *t = NULL;
    struct err e;
    char *big = mem_alloc((2u << 20) + 1);
    memset(big, 'x', 2u << 20);
    unit_code(template_parse(big, 2u << 20, &t, &e), ERR_TOO_LARGE, &e);
    unit_code(template_parse("a\xFF", 2, &t, &e), ERR_INVALID, &e);
    unit_says(&e, "UTF-8");
    assert_null(t);
    free(big);
}

static void the_sandbox_is_closed(void **state)
{
    text_fails("{{ ''.__class__.__mro__ }}", ERR_INVALID, "__class__");
    text_fails("{{ s.__class__() }}", ERR_INVALID, "unsafe");
    text_fails("{{ l.append(1) }}", ERR_INVALID, "append");
    text_fails("{{ l['append'](1) }}", ERR_INVALID, "append");
    text_fails("{{ d.update({}) }}", ERR_INVALID, "update");
    text_fails("{{ d.pop('a') }}", ERR_INVALID, "pop");
    text_fails("{{ '{0.__class__.x}'.format(s) }}", ERR_INVALID, "unsafe");
    text_fails("{{ s.encode() }}", ERR_UNSUPPORTED, "encode");
    text_fails("{{ range.__globals__.x }}", ERR_INVALID, "unsafe");
    text_gives("{{ l.__len__ }}{{ l._x }}{{ d.__dict__ }}", "");
    text_gives("{{ l }}{{ d }}", "[3, 1, 2]{'b': 1, 'a': [1, {'k': 'v'}], 'z': None}");
}

static void wrong_input_is_an_error_that_names_it(void **state)
{
    struct chat_template *t = NULL;
    struct err e;
    struct buf out = {0};
    unit_ok(template_parse("{{ messages }}", 14, &t, &e), &e);
    struct template_input in = {.messages_json = "[1, 2"};
    unit_code(template_render(t, &in, &out, &e), ERR_INVALID, &e);
    unit_says(&e, "messages");
    in = (struct template_input){.messages_json = "[]", .tools_json = "{"};
    unit_code(template_render(t, &in, &out, &e), ERR_INVALID, &e);
    unit_says(&e, "tools");
    in = (struct template_input){.messages_json = "[]", .extra_json = "[]"};
    unit_code(template_render(t, &in, &out, &e), ERR_INVALID, &e);
    unit_says(&e, "object");
    in = (struct template_input){.messages_json = "[1, \"a\", null, 1.5]"};
    unit_ok(template_render(t, &in, &out, &e), &e);
    assert_string_equal(out.data, "[1, 'a', None, 1.5]");
    template_close(&t);
    buf_done(&out);
}

static void a_failed_render_leaves_what_was_there(void **state)
{
    struct chat_template *t = NULL;
    struct err e;
    struct buf out = {0};
    static const char source[] = "text {{ raise_exception('no: ' ~ 1) }}";
    buf_puts(&out, "before");
    unit_ok(template_parse(source, sizeof(source) - 1, &t, &e), &e);
    struct template_input in = {.messages_json = "[]"};
    unit_code(template_render(t, &in, &out, &e), ERR_INVALID, &e);
    assert_string_equal(e.msg, "no: 1");
    assert_int_equal(out.len, 6);
    template_close(&t);
    template_close(&t); /* closing what is closed is allowed */
    buf_done(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_limited),
        cmocka_unit_test(recursion_is_limited),
        cmocka_unit_test(memory_and_text_are_limited),
        cmocka_unit_test(building_text_by_adding_is_linear),
        cmocka_unit_test(nesting_of_the_source_is_limited),
        cmocka_unit_test(long_sources_and_bad_bytes_are_refused),
        cmocka_unit_test(the_sandbox_is_closed),
        cmocka_unit_test(wrong_input_is_an_error_that_names_it),
        cmocka_unit_test(a_failed_render_leaves_what_was_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
