/* The option parser: what it stores, what it refuses, with which code. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/cli.h"

static struct values {
    bool flag;
    const char *text;
    uint64_t size, number;
    double real;
    struct cli_list list;
} v;

static const struct cli_option options[] = {
    {"flag", 'f', CLI_FLAG, &v.flag, NULL, "a flag"},
    {"text", 't', CLI_TEXT, &v.text, "TEXT", "a text"},
    {"size", 0, CLI_SIZE, &v.size, "SIZE", "a size"},
    {"number", 'n', CLI_UINT, &v.number, "N", "a number", 1, 10},
    {"real", 0, CLI_REAL, &v.real, "X", "a real", 0, 1},
    {"item", 0, CLI_LIST, &v.list, "ITEM", "more than once"},
    {NULL},
};
static const struct cli_spec spec = {.command = "test",
                                     .arguments = "A [B]",
                                     .about = "About.",
                                     .examples = "  switchyard test a",
                                     .options = options,
                                     .args_min = 1,
                                     .args_max = 2};

static int parse(const char *line, const char **args, size_t *count)
{
    static char text[200];
    char *argv[20], *save;
    int argc = 0;
    cli_list_done(&v.list);
    v = (struct values){0};
    snprintf(text, sizeof text, "test %s", line);
    for (char *word = strtok_r(text, " ", &save); word != NULL; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    return cli_parse(argc, argv, &spec, args, count);
}

static void options_of_every_kind_are_stored(void **state)
{
    const char *args[2];
    size_t count;
    assert_int_equal(
        parse("-f --text=hi a --size 1.5KiB -n3 --real 0.5 --item x b --item=y", args, &count),
        CLI_RUN);
    assert_true(v.flag && v.size == 1536 && v.number == 3 && v.real == 0.5);
    assert_string_equal(v.text, "hi");
    assert_int_equal(v.list.count, 2);
    assert_string_equal(v.list.items[1], "y");
    assert_int_equal(count, 2);
    assert_string_equal(args[0], "a");
    assert_string_equal(args[1], "b");
    cli_list_done(&v.list);
}

static void two_dashes_end_the_options(void **state)
{
    const char *args[2];
    size_t count;
    assert_int_equal(parse("-- --flag -n", args, &count), CLI_RUN);
    assert_false(v.flag);
    assert_string_equal(args[0], "--flag");
    assert_int_equal(parse("-", args, &count), CLI_RUN); /* a lone dash is an argument */
    assert_string_equal(args[0], "-");
}

static void what_is_wrong_is_refused(void **state)
{
    static const char *const lines[] = {
        "",           "a b c",        "a --nope",    "a --flag=1",
        "a --text",   "a -n 0",       "a -n 11",     "a -n x",
        "a -n -1",    "a -n 3x",      "a -n",        "a --real 2",
        "a --real x", "a --size 5XB", "a --size -1", "a --number=99999999999999999999"};
    const char *args[2];
    size_t count;
    for (size_t i = 0; i < BASE_COUNT(lines); i++)
        if (parse(lines[i], args, &count) != CLI_WRONG)
            fail_msg("'%s' was taken", lines[i]);
}

static void close_words_are_suggested(void **state)
{
    static const char *const words[] = {"serve", "check", "experts"};
    assert_string_equal(cli_suggest("sevre", words, 3), "serve");
    assert_string_equal(cli_suggest("expert", words, 3), "experts");
    assert_null(cli_suggest("banana", words, 3));
    assert_null(cli_suggest("", words, 3));
    assert_null(cli_suggest("x", words, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_of_every_kind_are_stored),
        cmocka_unit_test(two_dashes_end_the_options),
        cmocka_unit_test(what_is_wrong_is_refused),
        cmocka_unit_test(close_words_are_suggested),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
