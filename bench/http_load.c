/* The load generator of bench/api.py: one thread around epoll, so that it is not what is measured.
 *
 * usage: http_load PORT CONNECTIONS SECONDS < requests
 *
 * Standard input holds whole HTTP/1.1 requests, each after its length as 4 bytes, big-endian. They
 * are sent in turns over CONNECTIONS keep-alive connections to 127.0.0.1, one at a time on each.
 * Prints one JSON object; latencies are in milliseconds, from the request's first byte sent to the
 * answer's last byte read. What is not a 200 with a Content-Length counts as failed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_SAMPLES = 4 << 20, HEAD = 4096, PIECE = 1 << 18 };

struct request {
    const char *bytes;
    size_t length;
};

struct connection {
    int socket;
    struct request asked;
    size_t sent;
    char head[HEAD + 1];
    size_t head_length;
    long left; /* bytes of the body still to come; -1: the head is not whole yet */
    int good;
    double since;
};

static struct request *requests;
static size_t request_count, next_request;
static float *samples;
static long answered, failed;
static char piece[PIECE];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void read_requests(void) {
    size_t size = 0, room = 1 << 20, got;
    char *all = malloc(room);
    while (all && (got = fread(all + size, 1, room - size, stdin)) > 0)
        if ((size += got) == room) all = realloc(all, room *= 2);
    if (!all) die("memory");
    for (size_t at = 0; at + 4 <= size;) {
        uint32_t length;
        memcpy(&length, all + at, 4);
        length = ntohl(length);
        requests = realloc(requests, (request_count + 1) * sizeof *requests);
        if (!requests) die("memory");
        requests[request_count++] = (struct request){all + at + 4, length};
        at += 4 + length;
    }
    if (!request_count) {
        fprintf(stderr, "no request on standard input\n");
        exit(2);
    }
}

static void push(struct connection *c) {
    while (c->sent < c->asked.length) {
        ssize_t n = send(c->socket, c->asked.bytes + c->sent, c->asked.length - c->sent,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) return; /* edge-triggered: we are called when there is room */
        if (n < 0) die("send");
        c->sent += n;
    }
}

static void begin(struct connection *c) {
    c->asked = requests[next_request++ % request_count];
    c->sent = c->head_length = 0;
    c->left = -1;
    c->since = now();
    push(c);
}

static void finish(struct connection *c) {
    if (answered < MOST_SAMPLES) samples[answered] = (now() - c->since) * 1000;
    answered++;
    failed += !c->good;
}

/* Takes `n` bytes that came; 1: the answer is whole. */
static int take(struct connection *c, const char *bytes, size_t n) {
    if (c->left < 0) {
        size_t fits = n < HEAD - c->head_length ? n : HEAD - c->head_length;
        memcpy(c->head + c->head_length, bytes, fits);
        c->head_length += fits;
        c->head[c->head_length] = 0;
        char *end = strstr(c->head, "\r\n\r\n");
        if (!end) {
            if (c->head_length == HEAD) die("a head without end");
            return 0;
        }
        char *length = strcasestr(c->head, "\r\ncontent-length:");
        if (!length || length > end) {
            fprintf(stderr, "an answer without a Content-Length\n");
            exit(1);
        }
        c->good = !strncmp(c->head, "HTTP/1.1 200", 12);
        if (!c->good && !failed) fprintf(stderr, "%.400s\n", c->head);
        c->left = atol(length + 17);
        n -= end + 4 - c->head - (c->head_length - fits);
    }
    c->left -= n;
    return c->left == 0;
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s PORT CONNECTIONS SECONDS < requests\n", argv[0]);
        return 2;
    }
    int port = atoi(argv[1]), count = atoi(argv[2]), waiting = epoll_create1(0), one = 1;
    double seconds = atof(argv[3]);
    read_requests();
    samples = malloc(MOST_SAMPLES * sizeof *samples);
    struct connection *all = calloc(count, sizeof *all);
    if (!samples || !all || waiting < 0) die("start");
    struct sockaddr_in far = {.sin_family = AF_INET, .sin_port = htons(port)};
    far.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    double started = now();
    for (int i = 0; i < count; i++) {
        struct connection *c = all + i;
        c->socket = socket(AF_INET, SOCK_STREAM, 0);
        if (c->socket < 0 || connect(c->socket, (void *)&far, sizeof far)) die("connect");
        setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLET, {.ptr = c}};
        if (epoll_ctl(waiting, EPOLL_CTL_ADD, c->socket, &event)) die("epoll_ctl");
        begin(c);
    }
    int open = count;
    while (open > 0) {
        struct epoll_event events[256];
        int n = epoll_wait(waiting, events, 256, 60000);
        if (n <= 0) die("nothing came for a minute");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            ssize_t got;
            push(c);
            while ((got = recv(c->socket, piece, PIECE, MSG_DONTWAIT)) > 0) {
                if (!take(c, piece, got)) continue;
                finish(c);
                if (now() - started < seconds) {
                    begin(c);
                } else {
                    open--; /* it has its answer, and asks no more */
                    break;
                }
            }
            if (got == 0) {
                fprintf(stderr, "the server closed a connection\n");
                return 1;
            }
        }
    }
    double lasted = now() - started;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec +
                 (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    long kept = answered < MOST_SAMPLES ? answered : MOST_SAMPLES;
    qsort(samples, kept, sizeof *samples, by_size);
    printf("{\"answered\": %ld, \"failed\": %ld, \"seconds\": %.6f, \"cpu_seconds\": %.3f, "
           "\"p50\": %.3f, \"p99\": %.3f, \"worst\": %.3f}\n",
           answered, failed, lasted, cpu, samples[kept / 2], samples[kept * 99 / 100],
           samples[kept - 1]);
    return 0;
}
