// A client on java.net.http: Asks ADDRESS REQUESTS [SECONDS], as asks.py.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;

class Asks {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(args[0]));
        if (args.length > 2) {
            request.timeout(Duration.ofSeconds(Integer.parseInt(args[2])));
        }
        for (int n = 0; n < Integer.parseInt(args[1]); n++) {
            try {
                client.send(request.build(), BodyHandlers.ofString());
                System.out.println("ok");
            } catch (Exception exc) {
                System.out.println(exc);
            }
            Thread.sleep(300);
        }
        Thread.sleep(600_000);
    }
}
