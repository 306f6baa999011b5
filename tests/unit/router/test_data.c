/* Labelled rows from files: fields, conversations, errors with their line. */
#include "support.h"

#include <unistd.h>

static char path[] = "/tmp/router-data-XXXXXX";

static int setup(void **state)
{
    (void)state;
    strcpy(path + strlen(path) - 6, "XXXXXX");
    int fd = mkstemp(path);
    close(fd);
    return fd < 0;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

static void write_lines(const char *lines)
{
    struct err e = {0};
    if (file_write_atomic(path, lines, strlen(lines), &e) != ERR_OK)
        fail_msg("%s", e.msg);
}

static void expect_error(const char *lines, const char *line, const char *cause)
{
    write_lines(lines);
    struct router_data d = {0};
    struct err e = {0};
    assert_int_equal(router_data_load(path, &d, &e), ERR_INVALID);
    if (!strstr(e.msg, line) || !strstr(e.msg, cause))
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", e.msg, line, cause);
    assert_int_equal(d.count, 0);
}

static void rows_have_their_fields(void **state)
{
    write_lines(
        "{\"text\":\"h\\u00e9llo\",\"expert\":\"a\",\"source\":\"s:t1\",\"kind\":\"k\"}\n\r\n"
        "{\"expert\":\"b\",\"text\":\"\"}");
    struct router_data d = {0};
    struct err e = {0};
    assert_int_equal(router_data_load(path, &d, &e), ERR_OK);
    assert_int_equal(d.count, 2);
    assert_string_equal(d.rows[0].text, "héllo");
    assert_string_equal(d.rows[0].expert, "a");
    assert_string_equal(d.rows[0].source, "s:t1");
    assert_string_equal(d.rows[0].kind, "k");
    assert_string_equal(d.rows[1].text, "");
    assert_string_equal(d.rows[1].source, "");
    router_data_done(&d);
    assert_null(d.rows);
}

static void conversation_becomes_a_row_per_turn(void **state)
{
    write_lines("{\"turns\":[{\"text\":\"one\\u001ex\",\"expert\":\"a\"},"
                "{\"text\":\"two\",\"expert\":\"a\",\"followup\":true}]}\n");
    struct router_data d = {0};
    struct err e = {0};
    assert_int_equal(router_data_load(path, &d, &e), ERR_OK);
    assert_int_equal(d.count, 2);
    assert_string_equal(d.rows[0].text, "one x");
    assert_string_equal(d.rows[0].kind, "turn");
    assert_string_equal(d.rows[1].text, "one x\x1etwo");
    assert_string_equal(d.rows[1].kind, "followup");
    router_data_done(&d);
}

static void append_keeps_what_is_there(void **state)
{
    write_lines("{\"text\":\"one\",\"expert\":\"a\"}\n");
    struct router_data d = {0};
    struct err e = {0};
    assert_int_equal(router_data_append(path, &d, &e), ERR_OK);
    assert_int_equal(router_data_append(path, &d, &e), ERR_OK);
    assert_int_equal(d.count, 2);
    write_lines("nonsense");
    assert_int_equal(router_data_append(path, &d, &e), ERR_INVALID);
    assert_int_equal(d.count, 2);
    router_data_done(&d);
}

static void errors_name_line_and_cause(void **state)
{
    const char *good = "{\"text\":\"t\",\"expert\":\"a\"}\n";
    char *lines = mem_format("%s\n%s{\"text\":", good, good);
    expect_error(lines, "line 4", "not JSON");
    free(lines);
    expect_error("[1]\n", "line 1", "not a JSON object");
    expect_error("{\"expert\":\"a\"}", "line 1", "\"text\" must be a string");
    expect_error("{\"text\":1,\"expert\":\"a\"}", "line 1", "\"text\" must be a string");
    expect_error("{\"text\":\"x\"}", "line 1", "\"expert\" must be a string");
    expect_error("{\"text\":\"x\",\"expert\":\"\"}", "line 1", "1 to 63 bytes");
    expect_error("{\"turns\":3}", "line 1", "array");
    expect_error("{\"turns\":[{\"text\":\"x\",\"expert\":\"a\"},7]}", "line 1", "\"text\"");
    expect_error("\n\n", path, "no row");
}

static void missing_file_is_named(void **state)
{
    struct router_data d = {0};
    struct err e = {0};
    assert_int_equal(router_data_load("no/such/data.jsonl", &d, &e), ERR_NOT_FOUND);
    assert_non_null(strstr(e.msg, "no/such/data.jsonl"));
    assert_int_equal(router_data_load("no/such/data.jsonl", &d, NULL), ERR_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rows_have_their_fields, setup, teardown),
        cmocka_unit_test_setup_teardown(conversation_becomes_a_row_per_turn, setup, teardown),
        cmocka_unit_test_setup_teardown(append_keeps_what_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(errors_name_line_and_cause, setup, teardown),
        cmocka_unit_test(missing_file_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
