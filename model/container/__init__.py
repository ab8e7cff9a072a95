"""The container: the platform's folders, the results, reading ahead, the evalutils algorithm, the command."""
