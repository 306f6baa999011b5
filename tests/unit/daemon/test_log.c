/* The log never keeps its callers waiting, and says what it had to drop. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "daemon/log.h"

static void read_all(int fd, struct buf *out)
{
    char piece[65536];
    ssize_t n;
    buf_puts(out, "");
    while ((n = read(fd, piece, sizeof piece)) > 0)
        buf_append(out, piece, (size_t)n);
}

static void lines_are_json_with_their_text_escaped(void **state)
{
    int fds[2];
    struct logger *l = NULL;
    struct buf text = {0};
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(logger_open(fds[1], LOG_INFO, &l, NULL), ERR_OK);
    logger_event(l, LOG_WARN, "odd", "quote \" newline \n byte %c", 0xff);
    logger_event(l, LOG_DEBUG, "hidden", "below the level");
    logger_close(&l);
    close(fds[1]);
    read_all(fds[0], &text);
    close(fds[0]);
    char *end = strchr(text.data, '\n');
    assert_non_null(end);
    assert_int_equal(end[1], 0); /* one line */
    json_t *v = json_loads(text.data, 0, NULL);
    assert_non_null(v);
    assert_string_equal(json_string_value(json_object_get(v, "event")), "odd");
    assert_string_equal(json_string_value(json_object_get(v, "level")), "warn");
    assert_string_equal(json_string_value(json_object_get(v, "message")),
                        "quote \" newline \n byte \xef\xbf\xbd");
    json_decref(v);
    buf_done(&text);
}

static void a_reader_that_stops_costs_lines_and_no_time(void **state)
{
    int fds[2];
    struct logger *l = NULL;
    struct buf text = {0};
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(logger_open(fds[1], LOG_INFO, &l, NULL), ERR_OK);
    uint64_t from = clock_ns();
    for (int i = 0; i < 20000; i++)
        logger_event(l, LOG_INFO, "line", "number %d of many, with some text to fill the pipe", i);
    assert_true(logger_dropped(l) > 1000);
    logger_close(&l);
    assert_true(clock_ns() - from < 5000000000ull);
    close(fds[1]);
    read_all(fds[0], &text);
    close(fds[0]);
    assert_non_null(strstr(text.data, "number 0 of"));
    buf_done(&text);
}

static void what_was_dropped_is_told_when_the_reader_is_back(void **state)
{
    int fds[2];
    struct logger *l = NULL;
    struct buf text = {0};
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(logger_open(fds[1], LOG_INFO, &l, NULL), ERR_OK);
    while (logger_dropped(l) < 10)
        logger_event(l, LOG_INFO, "line", "some text to fill the pipe and then the ring of lines");
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    for (int i = 0; i < 5000 && strstr(text.data ? text.data : "", "log_dropped") == NULL; i++) {
        read_all(fds[0], &text);
        usleep(1000);
    }
    assert_non_null(strstr(text.data, "\"event\":\"log_dropped\",\"lines\":"));
    logger_close(&l);
    close(fds[0]);
    close(fds[1]);
    buf_done(&text);
}

static void a_reader_that_is_gone_is_survived(void **state)
{
    int fds[2];
    struct logger *l = NULL;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(logger_open(fds[1], LOG_INFO, &l, NULL), ERR_OK);
    close(fds[0]);
    for (int i = 0; i < 100; i++)
        logger_event(l, LOG_INFO, "line", "to nobody");
    logger_close(&l);
    close(fds[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_json_with_their_text_escaped),
        cmocka_unit_test(a_reader_that_stops_costs_lines_and_no_time),
        cmocka_unit_test(what_was_dropped_is_told_when_the_reader_is_back),
        cmocka_unit_test(a_reader_that_is_gone_is_survived),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
