/* Connections whose request never becomes whole are ended; others are left alone. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/http_conn.h"

#define LIMIT_NS 100000000ull

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload_data,
                                  size_t *upload_data_size, void **con_cls)
{
    static int seen;
    if (*con_cls == NULL) {
        *con_cls = &seen;
        return MHD_YES;
    }
    *upload_data_size = 0;
    conns_received(connection);
    struct MHD_Response *r = MHD_create_response_from_buffer(2, "ok", MHD_RESPMEM_PERSISTENT);
    enum MHD_Result queued = MHD_queue_response(connection, 200, r);
    MHD_destroy_response(r);
    return queued;
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                         enum MHD_RequestTerminationCode toe)
{
    conns_answered(connection);
}

static int connect_to(struct MHD_Daemon *d)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(d, MHD_DAEMON_INFO_BIND_PORT);
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons(info->port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = 10};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void sleep_ms(long ms)
{
    const struct timespec nap = {.tv_nsec = ms * 1000000};
    nanosleep(&nap, NULL);
}

static void say(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void overdue_requests_are_ended_and_others_are_not(void **state)
{
    struct conns *c = conns_open(4, LIMIT_NS);
    struct MHD_Daemon *d = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, on_request, NULL, MHD_OPTION_NOTIFY_COMPLETED,
        on_completed, NULL, MHD_OPTION_NOTIFY_CONNECTION, conns_notify, c, MHD_OPTION_END);
    char text[1000];
    assert_non_null(d);
    int slow = connect_to(d), quick = connect_to(d);
    say(slow, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc");
    say(quick, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_true(recv(quick, text, sizeof text, 0) > 0);
    conns_tick(c, clock_ns());
    sleep_ms(20);
    say(slow, "d"); /* nothing happened to it yet */
    sleep_ms(60);
    say(quick, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); /* its time starts again with each answer */
    assert_true(recv(quick, text, sizeof text, 0) > 0);
    sleep_ms(60);
    conns_tick(c, clock_ns());
    assert_true(recv(slow, text, sizeof text, 0) <= 0);
    say(quick, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_true(recv(quick, text, sizeof text, 0) > 0);
    close(slow);
    close(quick);
    MHD_stop_daemon(d);
    conns_close(&c);
}

static void more_connections_than_places_are_only_not_watched(void **state)
{
    struct conns *c = conns_open(1, LIMIT_NS);
    struct MHD_Daemon *d = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, on_request, NULL, MHD_OPTION_NOTIFY_COMPLETED,
        on_completed, NULL, MHD_OPTION_NOTIFY_CONNECTION, conns_notify, c, MHD_OPTION_END);
    char text[1000];
    int fds[3];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 3; i++) {
            fds[i] = connect_to(d);
            say(fds[i], "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_true(recv(fds[i], text, sizeof text, 0) > 0);
        }
        for (int i = 0; i < 3; i++)
            close(fds[i]);
    }
    MHD_stop_daemon(d);
    conns_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overdue_requests_are_ended_and_others_are_not),
        cmocka_unit_test(more_connections_than_places_are_only_not_watched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
